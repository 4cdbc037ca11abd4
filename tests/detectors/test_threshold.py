"""Thresholds: the stated rate is never exceeded, and no higher threshold keeps it."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.detectors.rejecting import with_rejection
from medrobust_jax.detectors.threshold import calibrate
from medrobust_jax.metrics.intervals import wilson


@pytest.mark.parametrize('rate', [0., .01, .05, .1, .29, .5])
@pytest.mark.parametrize('n', [1, 7, 19, 20, 21, 100, 333])
def test_at_most_the_stated_rate_and_nearly_that(n, rate):
    rng = np.random.default_rng(n)
    for scores in (rng.normal(size=n), rng.integers(0, 5, n).astype(float)):  # without and with ties
        threshold = calibrate(scores, false_alarm_rate=rate)
        rejected = scores < threshold.tau
        assert rejected.sum() <= rate * n + 1e-9
        assert threshold.false_alarms.value == rejected.mean()
        assert (scores < np.nextafter(threshold.tau, np.inf)).sum() > rate * n - 1e-9  # any higher one does not
        assert threshold.tau in scores


def test_the_interval_is_wilsons_or_over_patients():
    scores = np.random.default_rng(0).normal(size=200)
    threshold = calibrate(scores)
    assert threshold.false_alarms == wilson(10, 200)
    assert threshold.allowed == .05
    assert calibrate(scores, groups=np.arange(200) // 4).false_alarms.method == 'bootstrap-patients'


def test_ties_are_accepted():
    assert calibrate(np.zeros(10), false_alarm_rate=.3).false_alarms.value == 0
    threshold = calibrate([0., 1, 1, 1, 1, 2, 3, 4, 5, 6], false_alarm_rate=.3)
    assert (threshold.tau, threshold.false_alarms.value) == (1, .1)


def test_few_images_reject_none_and_the_interval_says_how_little_that_means():
    threshold = calibrate([3., 1, 2])
    assert threshold.tau == 1
    assert threshold.false_alarms.high > .5


def test_new_clean_images_are_rejected_about_as_often():
    rng = np.random.default_rng(0)
    rates = [np.mean(rng.normal(size=2000) < calibrate(rng.normal(size=99), false_alarm_rate=.05).tau)
             for _ in range(300)]
    # At most (m + 1) / (n + 1) = .05 on average, m = 4 of n = 99; the deviation of the mean is .0013.
    assert .045 < np.mean(rates) < .054


@pytest.mark.parametrize(('scores', 'rate', 'message'), [
    ([], .05, 'held-out clean images'),
    ([1., np.nan, 2.], .05, 'calibration image 1 is nan'),
    ([1., 2., -np.inf], .05, 'calibration image 2 is -inf'),
    ([1.], 1., 'false_alarm_rate = 1.0 must lie'),
    ([1.], -.1, 'false_alarm_rate = -0.1 must lie'),
])
def test_refused(scores, rate, message):
    with pytest.raises(ValueError, match=message):
        calibrate(scores, false_alarm_rate=rate)


def test_a_model_that_rejects(fitted, planted, linear_model):
    detector, state, score = fitted('gaussian')
    seen = linear_model(planted(1, 90)[0]['images'])
    threshold = calibrate(score(state, seen), false_alarm_rate=.2)
    forward = jax.jit(with_rejection(linear_model, detector, state, threshold.tau))
    images = jnp.asarray(seen['images']).at[4].set(jnp.nan)
    outputs = forward(images, jax.random.split(jax.random.key(0), 90))
    assert set(outputs) == {'logits', 'features', 'score', 'accepted'}
    finite = np.arange(90) != 4
    np.testing.assert_allclose(outputs['logits'][finite], np.asarray(seen['logits'])[finite], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(outputs['accepted'], outputs['score'] >= threshold.tau)
    assert not outputs['accepted'][4]  # NaN is no reason to trust an answer
    assert abs(int(outputs['accepted'].sum()) - 72) <= 2
