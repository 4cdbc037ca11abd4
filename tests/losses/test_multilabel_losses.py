"""Multi-label losses: by scikit-learn and by hand, limits, gradients."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from sklearn.metrics import log_loss

from medrobust_jax.losses.multilabel import (
    binary_cross_entropy,
    mean_bernoulli_kl,
    multilabel_margin,
    wrong_labels,
)

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(scale=2, size=(9, 5)).astype(np.float32)
FINDINGS = GENERATOR.integers(0, 2, (9, 5))


def test_cross_entropy_is_scikit_learns_mean_over_findings():
    got = binary_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(FINDINGS))
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    truth = [np.mean([log_loss([y], [[1 - q, q]], labels=[0, 1]) for y, q in zip(*row, strict=True)])
             for row in zip(FINDINGS, p, strict=True)]
    np.testing.assert_allclose(got, truth, rtol=1e-5)


def test_margin_is_positive_exactly_where_more_than_the_tolerance_is_wrong():
    logits, findings = jnp.array([[3., -1, .5], [3., -1, .5]]), jnp.array([[1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(wrong_labels(logits, findings), [0, 3])
    np.testing.assert_allclose(multilabel_margin(logits, findings), [-.5, 3])
    np.testing.assert_allclose(multilabel_margin(logits, findings, tolerance=1), [-1, 1])
    for tolerance in range(5):
        got = multilabel_margin(jnp.asarray(LOGITS), jnp.asarray(FINDINGS), tolerance=tolerance)
        wrong = wrong_labels(jnp.asarray(LOGITS), jnp.asarray(FINDINGS))
        np.testing.assert_array_equal(got > 0, wrong > tolerance)
    with pytest.raises(ValueError, match=r'tolerance = 5 must lie in 0\.\.4'):
        multilabel_margin(jnp.asarray(LOGITS), jnp.asarray(FINDINGS), tolerance=5)


def test_divergence_is_zero_at_equality_and_by_hand():
    logits = jnp.asarray(LOGITS)
    np.testing.assert_allclose(mean_bernoulli_kl(logits, logits), 0, atol=1e-6)
    got = mean_bernoulli_kl(jnp.array([[0., 0.]]), jnp.array([[np.log(3), 0.]]))
    np.testing.assert_allclose(got, (.5 * np.log(.5 / .75) + .5 * np.log(.5 / .25)) / 2, rtol=1e-5)


def test_large_logits_stay_finite_and_gradients_are_right():
    z, y = jnp.array([[1e30, -1e4, 0.]]), jnp.array([[0, 1, 1]])
    for loss in (binary_cross_entropy, multilabel_margin):
        value, gradient = jax.value_and_grad(lambda z, loss=loss: loss(z, y).sum())(z)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    with jax.enable_x64(True):
        z, y = jnp.asarray(LOGITS, jnp.float64), jnp.asarray(FINDINGS)
        check_grads(lambda z: binary_cross_entropy(z, y), (z,), 1, ('rev',))
        check_grads(lambda z: multilabel_margin(z, y, tolerance=2), (z,), 1, ('rev',))
