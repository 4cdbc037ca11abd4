"""Cumulative logits."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special
from sklearn.metrics import log_loss

from medrobust_jax.losses.ordinal import bernoulli_kl, cumulative_cross_entropy, predicted_grade

LOGITS = np.random.default_rng(0).normal(scale=2, size=(10, 4)).astype(np.float32)
GRADES = np.random.default_rng(1).integers(0, 5, 10)


def test_loss_is_a_sum_of_binary_cross_entropies():
    p = special.expit(LOGITS.astype(np.float64))
    truth = [sum(log_loss([g > k], [p[row, k]], labels=[False, True]) for k in range(4))
             for row, g in enumerate(GRADES)]
    got = cumulative_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(GRADES))
    np.testing.assert_allclose(got, truth, rtol=1e-5)


def test_one_question_is_binary_cross_entropy():
    got = cumulative_cross_entropy(jnp.array([[2.], [2.]]), jnp.array([1, 0]))
    np.testing.assert_allclose(got, [np.log1p(np.exp(-2)), np.log1p(np.exp(2))], rtol=1e-6)


def test_bernoulli_kl_by_numpy():
    other = LOGITS[::-1]
    p, q = special.expit(LOGITS.astype(np.float64)), special.expit(other.astype(np.float64))
    truth = (special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q)).sum(1)
    np.testing.assert_allclose(bernoulli_kl(jnp.asarray(LOGITS), jnp.asarray(other)), truth, rtol=1e-4)
    np.testing.assert_allclose(bernoulli_kl(jnp.asarray(LOGITS), jnp.asarray(LOGITS)), 0, atol=1e-6)


def test_large_logits_stay_finite():
    z, y = jnp.array([[1e4, -1e4, 1e30, -1e30]]), jnp.array([2])
    for loss in (lambda z: cumulative_cross_entropy(z, y), lambda z: bernoulli_kl(z, -z),
                 lambda z: bernoulli_kl(-z, z)):
        value, gradient = jax.value_and_grad(lambda z, loss=loss: loss(z).sum())(z)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_predicted_grade_counts_the_answers():
    for answers in itertools.product([-1.0, 1.0], repeat=3):
        assert predicted_grade(jnp.array([answers]))[0] == sum(a > 0 for a in answers)


def test_perfect_logits_have_no_loss():
    for grade in range(5):
        logits = jnp.where(jnp.arange(4) < grade, 50., -50.)[None]
        assert predicted_grade(logits)[0] == grade
        assert cumulative_cross_entropy(logits, jnp.array([grade]))[0] < 1e-6
