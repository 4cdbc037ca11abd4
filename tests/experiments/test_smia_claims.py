"""What the claims' rows and their table say of hand-made measurements."""
import numpy as np
import pytest

from experiments.smia_claims import rivals, stability_rows, success_rows, table_of, variants, write_rows
from medrobust_jax.tasks.classification import classification
from medrobust_jax.tasks.landmarks import landmarks
from medrobust_jax.tasks.ordinal import ordinal
from medrobust_jax.tasks.segmentation import segmentation

SIZE = 40
COMMON = {'dataset': 'd', 'defense': 'natural', 'seed': 0, 'provenance': {'checkpoint_fingerprint': 'x'}}


def test_fewer_that_stand_support_the_first_claim():
    ours, other = np.arange(SIZE) < 10, np.arange(SIZE) < 30
    row, = success_rows({'robust_accuracy': ours}, {'robust_accuracy': other}, None, ours='a', other='b', eps=.1)
    assert (row['difference'], row['supported']) == (pytest.approx(-.5), True)
    assert row['mcnemar_p'] < .001
    row, = success_rows({'robust_accuracy': other}, {'robust_accuracy': ours}, np.arange(SIZE) // 2, ours='b',
                        other='a', eps=.1)
    assert row['supported'] is False
    assert 'mcnemar_p' not in row, 'images of one patient are no independent examples'


def test_less_variance_and_more_falling_steps_support_the_others():
    task, draws = classification(3), np.random.default_rng(0).uniform(.4, .6, SIZE)

    def measure(attack, random_attack):
        seen.append(attack)
        first = len(seen) == 1  # a2 = 0
        return {'variance_over_iterations': draws + .3 * first, 'variance_over_restarts': draws - .3 * first,
                'share_of_falling_steps': draws - .3 * first}

    seen = []
    rows = stability_rows(measure, task, None, .1)
    assert len(seen) == len(variants(task))
    said = {(row['ours'], row['measure']): (row['claim'], row['supported']) for row in rows}
    assert said['smia_a2_1', 'variance_over_iterations'] == (2, True)
    assert said['smia_a2_1', 'variance_over_restarts'] == (2, False)
    assert said['smia_a2_1', 'share_of_falling_steps'] == (3, True)


@pytest.mark.parametrize(('task', 'moving', 'margin', 'hard'), [
    (classification(3), True, True, True), (ordinal(4), True, False, False), (segmentation(3), False, False, True),
    (landmarks(4, size=(16, 16)), False, False, False)])
def test_rivals_and_variants_fit_the_task(task, moving, margin, hard):
    assert ('di_fgsm' in rivals(task), 'pgd_margin' in rivals(task), 'smia_hard' in variants(task)) == (
        moving, margin, hard)


def test_rows_of_the_same_model_and_eps_are_replaced_and_shown(tmp_path):
    row = {**COMMON, 'claim': 1, 'eps': 8 / 255, 'ours': 'smia_a2_1', 'other': 'pgd', 'measure': 'quality',
           'difference': .01, 'low': -.02, 'high': .03, 'supported': None}
    out = tmp_path / 'claims.jsonl'
    write_rows(out, [row])
    rows = write_rows(out, [{**row, 'difference': None, 'low': None, 'high': None}])
    assert len(rows) == 1
    rows = write_rows(out, [{**row, 'eps': 4 / 255, 'supported': False}])
    table = table_of(rows)
    assert table.columns == ['claim', 'measure', 'against', 'd natural, 8/255', 'd natural, 4/255']
    assert table.lines == [['1', 'quality', 'pgd', 'undefined', '+0.0100 [-0.0200, +0.0300] **no**']]
