"""A model judged from end to end: rows, files, checks, and what a second evaluation leaves."""
import json
import math

import numpy as np
import pytest

from medrobust_jax.attacks.pgd import fgsm, pgd
from medrobust_jax.core import rng
from medrobust_jax.evaluate import judge as judging
from medrobust_jax.evaluate.judge import judge
from medrobust_jax.evaluate.records import read_rows
from medrobust_jax.evaluate.suite import Ensemble, Threat
from medrobust_jax.evaluate.verdicts import load_verdicts
from medrobust_jax.evaluate.writing import Subject
from medrobust_jax.tasks.ordinal import ordinal

RADII = np.concatenate([[-.02, -.01], .005 + .01 * np.arange(12)])
EPS = (.02, .05)
FGSM = Threat('fgsm', fgsm(), options={'attack': 'fgsm'})
PGD = Threat('pgd', pgd(num_steps=10), num_restarts=2, options={'attack': 'pgd', 'num_steps': 10})
L2 = Threat('pgd_l2', pgd(num_steps=10, norm='l2'), 'l2', options={'attack': 'pgd', 'num_steps': 10, 'norm': 'l2'})


def subject_of(system, **changes):
    identity = {'dataset': 'planted', 'split': 'test', 'model': 'linear', 'defense': 'natural', 'seed': 3}
    return Subject(system.forward, system.variables, system.task, identity,
                   dict(config_fingerprint='c', checkpoint_fingerprint='p', dataset_fingerprint='d') | changes)


@pytest.fixture
def judged(planted, layout, tmp_path):
    """`judged(threats, ...)` -> rows; files lie in tmp_path."""
    def run(threats=(FGSM, PGD), *, system=None, subject=None, examples=None, eps=EPS, **options):
        system = system or planted(RADII)
        return judge(subject or subject_of(system), examples or system.examples, threats, eps, layout=layout,
                     seed=0, workdir=tmp_path, **options)
    return run


def value(rows, attack, eps=0.0, metric='robust_accuracy', norm='linf'):
    wanted = (attack, metric, '' if attack == 'clean' else norm, eps)
    found, = (row.value for row in rows if (row.attack, row.metric, row.norm, row.eps) == wanted)
    return found


def test_rows_are_complete_and_true(judged, tmp_path):
    rows = judged()
    assert list(map(repr, rows)) == list(map(repr, read_rows(tmp_path / 'results.jsonl')))  # NaN is not NaN
    assert {(row.attack, row.eps) for row in rows} == {('clean', 0.0)} | {
        (attack, eps) for attack in ('fgsm', 'pgd', 'worst_case') for eps in EPS}
    for row in rows:
        assert (row.dataset, row.split, row.model, row.defense, row.seed, row.n) == (
            'planted', 'test', 'linear', 'natural', 3, 14)
        assert row.low <= row.value <= row.high
        assert row.low < row.high or row.metric == 'auroc', 'a width, even where all agree'
        assert row.warnings == ()
        assert row.provenance['config_fingerprint'] == 'c'
        assert row.provenance['block_width'] == 4
        assert row.provenance['versions']['jax']
        if row.attack in ('fgsm', 'pgd'):
            assert row.forward_passes == row.backward_passes > 0
            assert row.attack_options['attack'] == row.attack
            assert row.attack_options['attack_seed'] == 0
            assert row.attack_options['num_restarts'] == (2 if row.attack == 'pgd' else 1)
    assert value(rows, 'clean') == value(rows, 'clean', metric='accuracy') == 12 / 14
    for attack in ('fgsm', 'pgd', 'worst_case'):
        assert [value(rows, attack, eps) for eps in EPS] == [10 / 14, 7 / 14]
    assert value(rows, 'pgd', .05, 'accuracy') == 7 / 14
    assert 'auroc' in {row.metric for row in rows if row.attack == 'clean'}
    assert 'auroc' not in {row.metric for row in rows if row.attack != 'clean'}, 'scores are the attack\'s choice'


def test_without_stopping_scores_are_measured_under_attack(judged):
    rows = judged((PGD,), stop_when_fooled=False)
    assert value(rows, 'pgd', .05, 'auroc') < value(rows, 'clean', metric='auroc')
    assert not any(row.attack == 'worst_case' for row in rows), 'of one attack there is no worst'


def test_files_hold_every_verdict_and_pictures_of_both_classes(judged, planted, tmp_path):
    judged((FGSM, PGD, L2))
    images = planted(RADII).examples.images
    for threat in (FGSM, PGD, L2):
        verdicts = load_verdicts(tmp_path / 'verdicts' / f'{threat.name}.npz')
        np.testing.assert_array_equal(verdicts.index, np.arange(14))
        np.testing.assert_array_equal(verdicts.label, np.arange(14) % 2)
        np.testing.assert_array_equal(verdicts.acceptable, verdicts.prediction == verdicts.label)
        np.testing.assert_array_equal(verdicts.acceptable, verdicts.first_fooled < 0)
        assert verdicts.about['checkpoint_fingerprint'] == 'p'
        assert verdicts.about['norm'] == threat.norm
        if threat.norm == 'linf':
            np.testing.assert_array_equal(verdicts.acceptable, [eps < RADII for eps in EPS])
    with np.load(tmp_path / 'pictures.npz') as pictures:
        assert pictures['clean'].shape == (4, 4, 4, 1)
        assert set(pictures['target']) == {0, 1}
        assert (pictures['clean/prediction'][0] == pictures['target']).all()
        np.testing.assert_array_equal(pictures['clean'], images[pictures['index']])
        assert (str(pictures['task']), str(pictures['pgd_l2/norm'])) == ('classification', 'l2')
        size = np.abs(pictures['pgd/images'] - pictures['clean']).reshape(2, 4, -1).max(axis=-1)
        assert (size <= np.array(EPS)[:, None] + 1e-6).all()
        np.testing.assert_array_equal(pictures['pgd/prediction'], pictures['pgd/outputs'].argmax(axis=-1))


def test_worst_cases_are_taken_within_a_norm(judged):
    rows = judged((FGSM, PGD, L2))
    for eps in EPS:
        assert value(rows, 'worst_case', eps) <= min(value(rows, 'fgsm', eps), value(rows, 'pgd', eps))
        assert value(rows, 'worst_case', eps, norm='l2') == value(rows, 'pgd_l2', eps, norm='l2')


def test_a_second_evaluation_replaces_and_another_checkpoint_does_not(judged, planted, tmp_path):
    first = judged((FGSM,))
    again = judged((FGSM, PGD))
    both = read_rows(tmp_path / 'results.jsonl')
    assert len(both) == len({row.key for row in both}) == len(again)
    assert len(again) > len(first)
    other = subject_of(planted(RADII), checkpoint_fingerprint='q')
    judged((FGSM,), subject=other)
    assert len(read_rows(tmp_path / 'results.jsonl')) == len(again) + len(first)
    for line in (tmp_path / 'results.jsonl').read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_what_has_ended_is_kept_when_a_later_attack_fails(judged, tmp_path):
    class Stopped(Exception):
        pass

    def stop(name, done, total):
        if name == 'pgd':
            raise Stopped

    with pytest.raises(Stopped):
        judged((FGSM, PGD), progress=stop)
    assert {row.attack for row in read_rows(tmp_path / 'results.jsonl')} == {'clean', 'fgsm'}
    assert load_verdicts(tmp_path / 'verdicts' / 'fgsm.npz').acceptable.shape == (2, 14)


def test_patients_widen_the_intervals(judged, planted):
    examples = planted(RADII).examples._replace(groups=np.arange(14) // 7)
    rows = judged((FGSM,), examples=examples)
    assert {row.interval.split(' ')[0] for row in rows} <= {'bootstrap-patients', 'wilson-patients'}


def test_grades(judged, planted, tmp_path):
    """Three grades from one score: cumulative logits, the highest grade included."""
    def forward(weights, images, keys):
        score = (images.reshape(len(images), -1) - .5) @ weights
        return np.array([3., 0.]) + score[:, None]

    system = planted(RADII)
    system.forward, system.task = forward, ordinal(3)
    targets = np.where(RADII > 0, np.where(np.arange(14) % 2, 2, 1), 0).astype(np.int32)
    rows = judged((FGSM, PGD), system=system, examples=system.examples._replace(targets=targets))
    assert {'quadratic_weighted_kappa', 'mean_absolute_grade_error'} <= {row.metric for row in rows}
    assert value(rows, 'clean') == 12 / 14
    assert value(rows, 'worst_case', .05) <= value(rows, 'pgd', .05) < 12 / 14
    assert load_verdicts(tmp_path / 'verdicts' / 'pgd.npz').prediction.max() <= 2
    with np.load(tmp_path / 'pictures.npz') as pictures:
        assert str(pictures['task']) == 'ordinal'
        assert pictures['clean/outputs'].shape == (1, 4, 2)


def test_warnings_reach_the_rows_and_the_log(judged, planted, caplog):
    system = planted(RADII)
    healthy = system.forward
    system.forward = lambda weights, images, keys: healthy(
        weights, images + .05 * rng.normal(keys, images.shape[1:]), keys)
    rows = judged((FGSM,), system=system)
    assert all(any('randomized' in sentence for sentence in row.warnings) for row in rows)
    assert 'Check: two passes over the same images differ' in caplog.text


@pytest.mark.parametrize('threats', [(FGSM, PGD), (PGD, FGSM)], ids=['weak first', 'strong first'])
def test_order_is_checked_in_whatever_order_attacks_run(judged, threats):
    """The 'pgd' here hardly moves, so that the single step beats it."""
    hampered = pgd(num_steps=10, start='clean', relative_step_size=1e-3)
    rows = judged(tuple(t._replace(attack=hampered) if t is PGD else t for t in threats))
    assert any('fgsm breaks 5 more images than pgd' in sentence for row in rows for sentence in row.warnings)


@pytest.mark.parametrize(('weak', 'strong', 'expected'), [
    (FGSM, PGD, True), (PGD, FGSM, False), (PGD, PGD, False), (FGSM, L2, False),
    (PGD, PGD._replace(num_restarts=3), True), (PGD, PGD._replace(attack=pgd(num_steps=50)), True),
    (PGD, PGD._replace(attack=pgd(num_steps=50), num_restarts=1), False),
    (PGD._replace(options={}), PGD._replace(options={}, num_restarts=9), False),
])
def test_which_attack_should_not_beat_which(weak, strong, expected):
    assert judging._is_weaker(weak, strong) == expected


@pytest.mark.parametrize('names', [('pgd', 'pgd'), ('clean',), ('worst_case', 'pgd')])
def test_names_of_attacks_must_tell_them_apart(judged, names):
    with pytest.raises(ValueError, match='needs a name of its own'):
        judged([PGD._replace(name=name) for name in names])


def test_a_model_that_is_always_wrong_leaves_no_pictures(judged, planted, tmp_path):
    rows = judged((FGSM, PGD), system=planted(-np.abs(RADII)))
    assert value(rows, 'worst_case', .05) == 0.0
    assert not math.isnan(value(rows, 'clean'))
    with np.load(tmp_path / 'pictures.npz') as pictures:
        assert pictures['clean'].shape == (0, 4, 4, 1)


def test_members_of_an_ensemble_need_names_of_their_own(judged):
    with pytest.raises(ValueError, match='need names of their own'):
        judged([Ensemble('twice', (PGD, PGD))])
    with pytest.raises(ValueError, match='its norm'):
        judged([Ensemble('mixed', (PGD, L2))])


def test_what_cannot_run_is_refused_before_anything_is(judged, tmp_path):
    with pytest.raises(ValueError, match='num_targets = 5, but 2 outputs have 1 wrong'):
        judged([FGSM, PGD._replace(num_targets=5)])
    assert not (tmp_path / 'results.jsonl').exists()


def test_worst_cases_of_overlapping_grids_hold_all_attacks_of_a_radius(judged):
    other = PGD._replace(name='other', eps=(.05,), attack=pgd(num_steps=1, relative_step_size=1e-3))
    rows = judged([FGSM, PGD, other])
    assert value(rows, 'worst_case', .05) == 7 / 14
    assert len([row for row in rows if row.attack == 'worst_case' and row.eps == .05]) == 1


def test_an_ensemble_is_one_attack_with_the_count_after_each_member(judged, tmp_path):
    rows = judged([Ensemble('both', (FGSM, PGD), options={'attack': 'both'})])
    assert {row.attack for row in rows} == {'clean', 'both'}
    (row,) = (row for row in rows if row.attack == 'both' and row.eps == .05 and row.metric == 'robust_accuracy')
    assert row.value == 7 / 14
    assert row.provenance['standing_after'] == {'fgsm': 7, 'pgd': 7}
    assert row.attack_options['members']['pgd']['num_restarts'] == 2
    assert not (tmp_path / 'unfinished').exists()
