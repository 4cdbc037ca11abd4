"""The risks of a classifier with a detector: identities, worst cases, costs."""
import numpy as np
import pytest

from medrobust_jax.metrics.intervals import wilson
from medrobust_jax.metrics.risk import (
    Outcomes,
    nested_outcomes,
    outcomes,
    risk_difference,
    risk_estimates,
    worst_of,
)

WRONG = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
ACCEPTED = np.array([1, 0, 0, 1, 1, 1, 0, 1], bool)
REJECTED_CLEAN = np.array([0, 0, 1, 0, 0, 0, 1, 0], bool)


def test_by_hand():
    risks = risk_estimates(outcomes(WRONG, ACCEPTED), REJECTED_CLEAN, costs=(0., .5, 1.))
    assert risks['risk_classifier'].value == 3 / 8
    assert risks['risk_system'].value == 1 / 8
    assert risks['risk_cost_0'].value == 1 / 8
    assert risks['risk_cost_0.5'].value == pytest.approx(1 / 8 + .5 * 2 / 8)
    assert risks['risk_cost_1'].value == pytest.approx(3 / 8)
    assert risks['risk_system'].method == 'wilson'


def test_no_certainty_where_all_examples_agree():
    everybody = risk_estimates(Outcomes(*np.ones((2, 20), bool)), np.zeros(20, bool))
    cost, risk, none = everybody['risk_cost_0.1'], everybody['risk_system'], wilson(0, 20)
    assert (cost.value, cost.low, cost.high) == (1, risk.low, pytest.approx(1 + .1 * none.high))
    nobody = risk_estimates(Outcomes(*np.zeros((2, 20), bool)), np.ones(20, bool))['risk_cost_0.5']
    assert (nobody.value, nobody.low, nobody.high) == (.5, pytest.approx(.5 * (1 - none.high)),
                                                       pytest.approx(none.high + .5))
    assert nobody.method.startswith('wilson (')
    alike = np.tile([True, False], 10)  # of every patient one image of two
    patients = risk_estimates(Outcomes(alike, alike), ~alike, np.arange(20) // 2, costs=(1.,))['risk_cost_1']
    assert patients.value == 1
    assert 'added' in patients.method


def test_a_detector_that_accepts_all_changes_nothing_and_one_that_rejects_all_leaves_no_risk():
    everything = risk_estimates(outcomes(WRONG, np.ones(8, bool)), np.zeros(8, bool))
    assert everything['risk_system'] == everything['risk_classifier']
    assert everything['risk_cost_1'].value == everything['risk_system'].value
    nothing = risk_estimates(outcomes(WRONG, np.zeros(8, bool)), np.ones(8, bool))
    assert (nothing['risk_system'].value, nothing['risk_cost_1'].value) == (0, 1)


def test_system_risk_never_exceeds_the_classifiers():
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = worst_of([outcomes(*rng.random((2, 20)) < .4) for _ in range(3)])
        assert not (found.reached & ~found.wrong).any()


def test_the_worst_is_taken_per_risk():
    """One attack fools the classifier and is rejected, the other is accepted and fools nobody."""
    loud, quiet = outcomes([1, 0], [0, 0]), outcomes([0, 1], [1, 1])
    worst = worst_of([loud, quiet])
    np.testing.assert_array_equal(worst.wrong, [True, True])
    np.testing.assert_array_equal(worst.reached, [False, True])


def test_larger_balls_hold_smaller_ones():
    small, large = Outcomes(np.array([True, False]), np.array([True, False])), Outcomes(*np.zeros((2, 2), bool))
    first, second = nested_outcomes([small, large])
    np.testing.assert_array_equal(first.reached, [True, False])
    np.testing.assert_array_equal(second.reached, [True, False])


def test_patients_are_resampled_whole():
    reached, patients = np.repeat([True, False, False, False], 25), np.repeat(np.arange(4), 25)
    by_patient = risk_estimates(Outcomes(reached, reached), ~reached, patients)
    by_image = risk_estimates(Outcomes(reached, reached), ~reached)
    for name in ('risk_system', 'risk_cost_0.1'):
        widths = [each[name].high - each[name].low for each in (by_patient, by_image)]
        assert widths[0] > 2 * widths[1]
    assert by_patient['risk_cost_0.1'].method == 'bootstrap-patients'


def test_differences_are_paired():
    reached = np.arange(100) < 50
    better = reached & (np.arange(100) >= 20)
    difference = risk_difference(reached, better)
    assert difference.value == pytest.approx(-.2)
    assert difference.high < 0
    same = risk_difference(reached, reached)
    assert same.low < same.value == 0 < same.high
    turned = risk_difference(np.ones(20, bool), np.zeros(20, bool))
    assert (turned.value, turned.low, turned.method) == (-1, -1, 'newcombe')
    assert -1 < turned.high < 0


@pytest.mark.parametrize(('call', 'message'), [
    (lambda: outcomes([1, 0], [1]), r'must be \[N\] both'),
    (lambda: worst_of([]), 'one attack at least'),
    (lambda: worst_of([outcomes([1], [1]), outcomes([1, 0], [1, 0])]), 'same examples'),
    (lambda: risk_estimates(outcomes([1], [1]), [0], costs=(-1.,)), 'must not be negative'),
    (lambda: risk_estimates(outcomes([1], [1]), [0, 1]), 'rejected_clean')])
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
