"""Intervals and paired tests: closed forms, coverage, patients, and what is refused."""
import numpy as np
import pytest
from scipy import stats

from medrobust_jax.metrics.classification import auroc
from medrobust_jax.metrics.intervals import (
    bootstrap,
    mcnemar,
    newcombe,
    paired_bootstrap,
    paired_difference,
    proportion,
    wilson,
)


def mean(values):
    return float(np.mean(values))


@pytest.mark.parametrize(('successes', 'n'), [(0, 1), (1, 1), (0, 156), (156, 156), (130, 156), (1, 624)])
def test_wilson_equals_scipy(successes, n):
    interval = stats.binomtest(successes, n).proportion_ci(method='wilson')
    estimate = wilson(successes, n)
    np.testing.assert_allclose([estimate.low, estimate.high], [interval.low, interval.high], atol=1e-12)
    assert estimate.method == 'wilson'


def test_wilson_never_excludes_its_estimate():
    for n in (1, 2, 3, 7, 49, 156, 400, 624, 10_000):
        for successes in {0, 1, n // 3, n // 2, n - 1, n}:
            estimate = wilson(successes, n)
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_breastmnist_alone_means_about_eight_points():
    estimate = wilson(78, 156)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(0.077, abs=0.002)


@pytest.mark.parametrize(('successes', 'n'), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses(successes, n):
    with pytest.raises(ValueError, match='n'):
        wilson(successes, n)


def test_proportion_takes_wilson_without_patients():
    acceptable = np.arange(50) % 3 > 0
    assert proportion(acceptable) == wilson(acceptable.sum(), 50)
    assert proportion(acceptable, groups=np.arange(50)) == wilson(acceptable.sum(), 50)


def test_proportion_over_patients_is_wider_than_over_images():
    verdict_of_patient = np.random.default_rng(0).random(30) < 0.7
    patients = np.repeat(np.arange(30), 10)
    grouped = proportion(verdict_of_patient[patients], patients)
    over_images = wilson(verdict_of_patient[patients].sum(), 300)
    assert grouped.method == 'bootstrap-patients'
    assert grouped.n == 300
    # Ten equal images per patient: sqrt(10) times as wide.
    ratio = (grouped.high - grouped.low) / (over_images.high - over_images.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)


@pytest.mark.parametrize('verdict', [False, True])
def test_agreement_of_all_images_is_no_certainty(verdict):
    estimate = proportion(np.full(60, verdict), groups=np.repeat([f'p{i}' for i in range(20)], 3))
    assert estimate.method == 'wilson-patients'
    assert estimate.high - estimate.low == pytest.approx(wilson(0, 20).high)
    assert estimate.n == 60


def test_proportion_refuses_what_is_no_verdict():
    with pytest.raises(ValueError, match='at least one'):
        proportion(np.array([], bool))
    with pytest.raises(ValueError, match='bool'):
        proportion([0.2, 0.7])
    with pytest.raises(ValueError, match='one id per example'):
        proportion([True, False], groups=[1])
    for missing in (None, np.nan, ''):
        with pytest.raises(ValueError, match=r'groups: row 1 holds .* leave groups out'):
            proportion([True, False, True], groups=['p', missing, missing])


def test_bootstrap_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(1).normal(size=200)
    estimate = bootstrap(mean, (values,))
    error = values.std() / np.sqrt(200)
    assert estimate.value == mean(values)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_weights_and_indices_are_the_same_resamples():
    rng = np.random.default_rng(2)
    scores, labels = rng.random(80).round(1), rng.integers(0, 2, 80)
    by_index = bootstrap(auroc, (scores, labels), num_resamples=60)
    by_weight = bootstrap(auroc, (scores, labels), num_resamples=60, weighted=True)
    np.testing.assert_allclose(by_index[:3], by_weight[:3], rtol=1e-12)


def test_bootstrap_repeats_with_its_seed():
    values = np.random.default_rng(3).random(40)
    assert bootstrap(mean, (values,)) == bootstrap(mean, (values,))
    assert bootstrap(mean, (values,)) != bootstrap(mean, (values,), seed=1)


def test_patients_are_resampled_as_wholes():
    groups, seen = np.array(['a', 'a', 'a', 'b', 'b', 'c']), []
    bootstrap(lambda ids: seen.append(np.unique(ids, return_counts=True)) or 0.0,
              (np.arange(6),), groups=groups, num_resamples=50)
    for ids, counts in seen:
        of_patient = {g: set(counts[np.isin(ids, np.flatnonzero(groups == g))]) for g in 'abc'}
        assert all(len(c) <= 1 for c in of_patient.values())


def test_undefined_resamples_are_left_out_and_counted():
    estimate = bootstrap(auroc, (np.linspace(0, 1, 12), np.arange(12) == 11), weighted=True)
    assert 'resamples undefined' in estimate.method
    assert estimate.low <= estimate.value == estimate.high == 1


def test_what_has_no_interval_says_so():
    one = bootstrap(mean, ([0.5],))
    assert one.value == 0.5
    assert np.isnan(one.low)
    assert 'no interval' in one.method
    same_patient = bootstrap(mean, ([0.5, 1.0],), groups=[7, 7])
    assert np.isnan(same_patient.high)
    assert same_patient.method.startswith('bootstrap-patients')
    undefined = bootstrap(auroc, ([0.5, 0.6], [1, 1]), weighted=True)
    assert np.isnan(undefined.value)
    assert undefined.method.startswith('undefined')


def test_bootstrap_refuses():
    with pytest.raises(ValueError, match='leading axis'):
        bootstrap(mean, (np.zeros(3), np.zeros(4)))
    with pytest.raises(ValueError, match='leading axis'):
        bootstrap(mean, (np.zeros(0),))
    with pytest.raises(ValueError, match='level'):
        bootstrap(mean, (np.zeros(3),), level=95)


def test_weighted_resamples_are_computed_together():
    calls = []

    def statistic(scores, labels, weights=None):
        calls.append(None if weights is None else weights.shape)
        return auroc(scores, labels, weights)

    bootstrap(statistic, (np.arange(624), np.arange(624) % 2), weighted=True)
    assert calls == [None, (1000, 624)]


def test_coverage_of_the_auroc_interval():
    true, inside = stats.norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        labels = np.repeat([0, 1], 60)
        estimate = bootstrap(auroc, (rng.normal(size=120) + labels, labels), num_resamples=300,
                             weighted=True, seed=seed)
        inside += estimate.low <= true <= estimate.high
    assert inside >= 51  # of 60; 57 expected


def test_mcnemar_equals_the_binomial_test():
    rng = np.random.default_rng(5)
    a, b = rng.random(100) < 0.8, rng.random(100) < 0.6
    only_a, only_b = (a & ~b).sum(), (b & ~a).sum()
    expected = stats.binomtest(int(only_a), int(only_a + only_b)).pvalue
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-12) == mcnemar(b, a)


def test_mcnemar_limits():
    same = np.array([True, False, True])
    assert mcnemar(same, same) == 1
    assert mcnemar([True] * 6, [False] * 6) == pytest.approx(2 / 64)
    with pytest.raises(ValueError, match='verdicts'):
        mcnemar([True], [True, False])


def test_pairing_cancels_what_is_hard_for_both():
    rng = np.random.default_rng(6)
    hardness = rng.normal(size=150)
    a, b = hardness + 0.1 * rng.normal(size=150), hardness + 0.2
    estimate = paired_bootstrap(mean, (a,), (b,))
    alone = bootstrap(mean, (a,))
    assert estimate.value == pytest.approx(mean(b) - mean(a))
    assert 0 < estimate.low < estimate.high
    assert estimate.high - estimate.low < 0.2 * (alone.high - alone.low)
    mirrored = paired_bootstrap(mean, (b,), (a,))
    np.testing.assert_allclose([-mirrored.high, -mirrored.low], [estimate.low, estimate.high])


def test_paired_bootstrap_refuses_different_examples():
    with pytest.raises(ValueError, match='same examples'):
        paired_bootstrap(mean, (np.zeros(3),), (np.zeros(4),))


def pairs(both, only_first, only_second, neither):
    counts = [both, only_first, only_second, neither]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


@pytest.mark.parametrize(('counts', 'expected'), [
    # Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables, chapter 8: Bentur 2009 and Cavo 2012.
    ((1, 1, 7, 12), (-.2857, -.5069, -.0256)),
    ((59, 6, 16, 80), (-.0621, -.1186, -.0046))])
def test_newcombe_equals_published_intervals(counts, expected):
    first, second = pairs(*counts)
    estimate = newcombe(second, first)
    np.testing.assert_allclose(estimate[:3], expected, atol=6e-5)
    assert estimate.method == 'newcombe'
    mirrored = newcombe(first, second)
    np.testing.assert_allclose([-mirrored.high, -mirrored.low], estimate[1:3])


def test_newcombe_has_a_width_where_verdicts_never_or_always_differ():
    """Without a correlation the squared distances to the ends of the Wilson intervals add."""
    for counts in ((20, 0, 0, 0), (0, 0, 0, 20), (7, 0, 0, 13), (0, 20, 0, 0), (0, 0, 20, 0)):
        estimate = newcombe(*pairs(*counts))
        assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.high - estimate.low > .05
    end = wilson(0, 20).high
    assert newcombe(*pairs(20, 0, 0, 0))[:3] == (0, pytest.approx(-end), pytest.approx(end))
    assert newcombe(np.zeros(20), np.ones(20))[:3] == (1, pytest.approx(1 - np.sqrt(2) * end), 1)


def test_newcombe_counts_patients():
    same = np.repeat([True, False], [21, 39])
    of_patients = newcombe(same, same, np.arange(60) // 3)
    assert of_patients[:3] == pytest.approx(newcombe(*pairs(7, 0, 0, 13))[:3])
    assert (of_patients.n, of_patients.method) == (60, 'newcombe-patients')


def test_newcombe_covers():
    """At the smallest sets of this kind, and with few discordant pairs."""
    rng, inside = np.random.default_rng(7), 0
    for _ in range(400):
        counts = rng.multinomial(30, (.7, .06, .04, .2))
        estimate = newcombe(*pairs(*counts))
        inside += estimate.low <= -.02 <= estimate.high
    assert inside >= 370


def test_a_difference_of_verdicts_is_never_certain():
    same = np.arange(50) % 3 > 0
    assert paired_difference(same, same) == newcombe(same, same)
    assert paired_difference(np.ones(20), np.zeros(20)).high > -1
    other = np.arange(50) % 2 > 0
    assert paired_difference(same, other).method == 'bootstrap'
    quality = np.linspace(0, 1, 50)
    assert paired_difference(quality, quality)[1:] == (0, 0, 50, 'bootstrap'), 'no verdicts'
    patients = np.arange(50) // 2
    assert paired_difference(same, same, patients).method == 'newcombe-patients'
    assert np.isnan(paired_difference([True], [False]).low)


def test_newcombe_refuses():
    with pytest.raises(ValueError, match='paired verdicts'):
        newcombe([True], [True, False])
    with pytest.raises(ValueError, match='paired verdicts'):
        newcombe([.5], [1])
    with pytest.raises(ValueError, match='at least one'):
        newcombe([], [])
