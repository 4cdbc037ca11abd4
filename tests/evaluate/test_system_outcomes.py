"""Outcomes of judged systems: kept, told apart, compared in pairs."""
import numpy as np
import pytest

from experiments.compare_systems import compare_systems, table_of
from medrobust_jax.evaluate.system_outcomes import (
    SystemOutcomes,
    check_comparable,
    compared,
    holds_outcomes,
    load_outcomes,
    save_outcomes,
)
from medrobust_jax.metrics.risk import Outcomes

GRID, SIZE = (.01, .02), 60
SETTINGS = {'surrogate': ['abc', 100], 'seed': 0, 'checkpoint_fingerprint': 'x', 'config_fingerprint': 'y',
            'detector': ['none', {}]}


def system(label, reached, *, groups=None, eps=GRID, index=range(SIZE), **settings):
    """A system that fails on the first `reached` images at each eps."""
    worst = [Outcomes(np.arange(SIZE) < count + 5, np.arange(SIZE) < count) for count in reached]
    return SystemOutcomes(label, np.asarray(eps), np.asarray(index), groups, worst, {**SETTINGS, **settings})


def test_what_is_saved_is_loaded_and_recognized(tmp_path):
    groups = np.arange(SIZE) // 2
    kept = system('ssat+gaussian', (3, 20), groups=groups)
    save_outcomes(tmp_path, 'gaussian', kept)
    loaded = load_outcomes(tmp_path)['ssat+gaussian']
    np.testing.assert_array_equal(loaded.groups, groups)
    assert [each.reached.sum() for each in loaded.worst] == [3, 20]
    assert [each.wrong.sum() for each in loaded.worst] == [8, 25]
    assert holds_outcomes(tmp_path, 'gaussian', 'ssat+gaussian', kept.settings, (.02, .01))
    assert not holds_outcomes(tmp_path, 'lid', 'ssat+lid', kept.settings, GRID)
    assert not holds_outcomes(tmp_path, 'gaussian', 'other+gaussian', kept.settings, GRID)
    assert not holds_outcomes(tmp_path, 'gaussian', 'ssat+gaussian', kept.settings, (.01,))
    assert not holds_outcomes(tmp_path, 'gaussian', 'ssat+gaussian', {**kept.settings, 'seed': 1}, GRID)
    save_outcomes(tmp_path, 'lid', system('ssat+lid', (3, 20), checkpoint_fingerprint='older'))
    with pytest.raises(ValueError, match='several checkpoints'):
        load_outcomes(tmp_path)
    with pytest.raises(FileNotFoundError, match='holds no system'):
        load_outcomes(tmp_path / 'nothing')


def test_a_lower_risk_supports_the_claim_and_a_higher_one_refutes_it():
    better, worse = system('a', (5, 10)), system('b', (5, 40))
    first, second = compared(better, worse)
    assert (first['difference'], first['supported'], first['interval']) == (0, None, 'newcombe')
    assert first['low'] < 0 < first['high'], 'equal outcomes of so many images are no certainty'
    assert second['difference'] == pytest.approx(-.5)
    assert second['supported'] is True
    assert [row['supported'] for row in compared(worse, better)] == [None, False]


def test_patients_are_resampled():
    alone, few = (system('a', (0, 30), groups=groups) for groups in (None, np.arange(SIZE) // 15))
    other = system('b', (0, 0))
    widths = [row['high'] - row['low'] for row in (list(compared(each, other))[1] for each in (alone, few))]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize(('changes', 'differing'), [
    ({'seed': 3}, 'seed'), ({'eps': (.01, .03)}, 'eps'), ({'index': range(1, SIZE + 1)}, 'images'),
    ({'surrogate': ['', 100]}, 'surrogate'), ({'surrogate': ['abc', 50]}, 'surrogate')])
def test_systems_that_met_other_attacks_are_not_compared(changes, differing):
    with pytest.raises(ValueError, match=f'cannot be compared; they differ in {differing}'):
        check_comparable([system('a', (1, 2)), system('b', (1, 2), **changes)])


def test_a_model_is_no_surrogate_of_its_own_and_detectors_differ():
    check_comparable([system('a', (1, 2)), system('b', (1, 2), surrogate=['other', 100], detector=['lid', {}],
                                                  checkpoint_fingerprint='z')])


def test_one_system_is_not_compared(tmp_path):
    save_outcomes(tmp_path, 'none', system('a', (1, 2)))
    with pytest.raises(ValueError, match='nothing to compare'):
        compare_systems([tmp_path], 'a')
    save_outcomes(tmp_path, 'lid', system('a+lid', (1, 2)))
    rows = compare_systems([tmp_path], 'a+lid')
    assert table_of(rows).lines[1][0] == 'a'
    save_outcomes(tmp_path, 'other', system('a+other', (1, 2), seed=9))
    assert compare_systems([tmp_path], 'a+lid', against=['a']) == rows
    with pytest.raises(ValueError, match='differ in seed'):
        compare_systems([tmp_path], 'a+lid')
    assert 'undefined' in table_of([{**row, 'difference': None} for row in rows]).lines[1][1]
