"""Detection of attacked images: AUROC and rates against scikit-learn, honest intervals."""
import numpy as np
import pytest
from sklearn import metrics as sk

from medrobust_jax.metrics.adversarial_detection import detection_metrics, detection_rate
from medrobust_jax.metrics.intervals import wilson


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return rng.normal(1, 1, 200).round(1), rng.normal(0, 1, 200).round(1)


def test_values_are_scikit_learns(scores):
    clean, attacked = scores
    is_attacked, rejection = np.repeat([0, 1], 200), -np.concatenate(scores)
    false, true, _ = sk.roc_curve(is_attacked, rejection, drop_intermediate=False)
    estimates = detection_metrics(clean, attacked)
    assert estimates['auroc'].value == pytest.approx(sk.roc_auc_score(is_attacked, rejection))
    for name, rate in (('tpr_at_1_percent', .01), ('tpr_at_5_percent', .05)):
        assert estimates[name].value == true[false <= rate + 1e-12].max()
    for estimate in estimates.values():
        assert estimate.low < estimate.value < estimate.high
        assert (estimate.n, estimate.method) == (200, 'bootstrap')


def test_rate_by_hand():
    clean, attacked = np.arange(100.), np.array([-1., 4., 4.5, 5., 60.])
    scores, is_clean = np.concatenate([clean, attacked]), np.repeat([1, 0], [100, 5])
    # Below 5 lie five clean images and three attacked ones; a threshold above 5 rejects a sixth.
    assert detection_rate(scores, is_clean, false_alarm_rate=.05) == 3 / 5
    assert detection_rate(scores, is_clean, false_alarm_rate=0) == 1 / 5


def test_intervals_hold_the_truth_about_as_often_as_they_claim():
    truth = 0.7602  # P[N(1, 1) > N(0, 1)] = Phi(1 / sqrt 2)
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        estimate = detection_metrics(rng.normal(1, 1, 80), rng.normal(0, 1, 80))['auroc']
        held += estimate.low <= truth <= estimate.high
    assert 52 <= held <= 60


def test_a_patients_images_are_drawn_together(scores):
    clean, attacked = (np.repeat(each[:40], 5) for each in scores)
    images = detection_metrics(clean, attacked)['auroc']
    patients = detection_metrics(clean, attacked, np.repeat(np.arange(40), 5))['auroc']
    assert patients.method == 'bootstrap-patients'
    assert patients.value == images.value
    assert patients.high - patients.low > 1.6 * (images.high - images.low)


def test_attacked_images_of_some_clean_ones(scores):
    clean, attacked = scores
    rows = np.flatnonzero(attacked < .5)
    estimate = detection_metrics(clean, attacked[rows], rows=rows)['auroc']
    assert estimate.n == len(rows)
    assert estimate.method == 'bootstrap'


def test_pairs_are_drawn_together():
    hard = np.random.default_rng(3).normal(size=100) * 10
    paired = detection_metrics(hard + 1, hard)['auroc']
    shuffled = detection_metrics(hard + 1, hard[::-1])['auroc']
    assert paired.value == shuffled.value
    assert paired.high - paired.low < .3 * (shuffled.high - shuffled.low)


def test_perfect_separation_is_not_certain():
    estimates = detection_metrics(np.arange(30.) + 100, np.arange(30.))
    for estimate in estimates.values():
        assert (estimate.value, estimate.high) == (1, 1)
        assert estimate.low == wilson(30, 30).low
    assert estimates['auroc'].method == 'wilson'
    of_patients = detection_metrics(np.arange(30.) + 100, np.arange(30.), np.arange(30) // 3)['auroc']
    assert (of_patients.low, of_patients.method) == (wilson(10, 10).low, 'wilson-patients')


def test_a_rate_of_less_than_one_image_is_said():
    estimates = detection_metrics(np.arange(30.), np.arange(30.))
    assert '(no false alarm: 30 clean images)' in estimates['tpr_at_1_percent'].method
    assert 'false alarm' not in estimates['tpr_at_5_percent'].method


@pytest.mark.parametrize(('clean', 'attacked', 'options', 'message'), [
    ([], [1.], {}, 'scores of clean images must be'),
    ([1.], [np.nan], {}, 'attacked image 0 is NaN'),
    ([1., 2.], [1.], {}, '2 clean and 1 attacked images: give rows'),
    ([1., 2.], [1.], {'rows': [2]}, 'rows must lie in 0..1'),
    ([1., 2.], [1.], {'rows': [0.]}, 'integers'),
    ([1., 2.], [1., 2.], {'groups': [1]}, 'one id per clean image'),
    ([1., 2.], [1., 2.], {'false_alarm_rates': [1.]}, 'false_alarm_rate = 1.0'),
])
def test_refused(clean, attacked, options, message):
    with pytest.raises(ValueError, match=message):
        detection_metrics(clean, attacked, **options)
