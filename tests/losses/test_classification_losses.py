"""Classification losses: values by hand and by scikit-learn, limits, finite gradients."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special
from sklearn.metrics import log_loss

from medrobust_jax.losses.classification import (
    cross_entropy,
    dlr,
    guided_complement_entropy,
    kl_divergence,
    margin,
    prediction_is_right,
    targeted_cross_entropy,
    targeted_dlr,
    targeted_margin,
)

LOGITS = np.random.default_rng(0).normal(scale=3, size=(12, 4)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 4, 12)


def test_cross_entropy_by_hand():
    np.testing.assert_allclose(cross_entropy(jnp.array([[0., 0.], [0, np.log(3)]]), jnp.array([0, 1])),
                               [np.log(2), np.log(4 / 3)], rtol=1e-6)


def test_cross_entropy_is_scikit_learns():
    got = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    assert got.shape == (12,)
    probabilities = special.softmax(LOGITS.astype(np.float64), axis=1)
    np.testing.assert_allclose(got.mean(), log_loss(LABELS, probabilities, labels=range(4)), rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.7])
def test_label_smoothing_is_cross_entropy_to_smoothed_targets(smoothing):
    soft = (1 - smoothing) * np.eye(4)[LABELS] + smoothing / 4
    truth = -(soft * special.log_softmax(LOGITS.astype(np.float64), axis=1)).sum(1)
    got = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), label_smoothing=smoothing)
    np.testing.assert_allclose(got, truth, rtol=1e-5)


def test_margin_is_positive_exactly_where_wrong():
    got = np.asarray(margin(jnp.asarray(LOGITS), jnp.asarray(LABELS)))
    for row in range(12):
        others = np.delete(LOGITS[row], LABELS[row])
        assert got[row] == others.max() - LOGITS[row, LABELS[row]]
    np.testing.assert_array_equal(got > 0, LOGITS.argmax(1) != LABELS)
    np.testing.assert_array_equal(margin(jnp.array([[1., 4.]]), jnp.array([1])), [-3])  # two classes


def test_guided_complement_entropy_by_hand():
    """p = (.6, .3, .1): the complement of class 0 is (3/4, 1/4)."""
    logits = jnp.log(jnp.array([[.6, .3, .1]]))
    complement = .75 * np.log(.75) + .25 * np.log(.25)
    for alpha in (0.0, .333, 2.0):
        np.testing.assert_allclose(guided_complement_entropy(logits, jnp.array([0]), alpha=alpha),
                                   .6**alpha * complement / np.log(2), rtol=1e-5)


def test_guided_complement_entropy_is_scipys():
    p = special.softmax(LOGITS.astype(np.float64), axis=1)
    others = np.array([np.delete(row, label) for row, label in zip(p, LABELS, strict=True)])
    entropy = special.entr(others / others.sum(1, keepdims=True)).sum(1)
    got = guided_complement_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), alpha=.333)
    np.testing.assert_allclose(got, -(p[np.arange(12), LABELS]**.333) * entropy / np.log(3), rtol=1e-5)


def test_guided_complement_entropy_at_its_ends():
    logits = jnp.array([[50., 0., 0., 0.], [-200., 0., 0., 0.], [0., 500., -500., -500.], [3., 0., -jnp.inf, 0.]])
    labels = jnp.zeros(4, int)
    losses = guided_complement_entropy(logits, labels)
    np.testing.assert_allclose(losses[:3], [-1, 0, 0], atol=1e-6)  # best; certain of another class; one rival
    assert -1 < losses[3] < 0
    gradient = jax.grad(lambda z: guided_complement_entropy(z, labels).sum())(logits)
    assert np.isfinite(gradient).all()
    check_grads(lambda z: guided_complement_entropy(z, jnp.asarray(LABELS)), (jnp.asarray(LOGITS) / 3,), order=1,
                modes=['rev'], atol=1e-2, rtol=1e-2)
    with pytest.raises(ValueError, match='guided_complement_entropy needs at least 3 classes, not 2'):
        guided_complement_entropy(jnp.zeros((1, 2)), jnp.array([0]))


def test_kl_is_scipys_and_zero_at_equality():
    other = LOGITS[::-1] * .5
    p, q = (special.softmax(v.astype(np.float64), axis=1) for v in (LOGITS, other))
    np.testing.assert_allclose(kl_divergence(jnp.asarray(LOGITS), jnp.asarray(other)),
                               special.rel_entr(p, q).sum(1), rtol=1e-5)
    np.testing.assert_allclose(kl_divergence(jnp.asarray(LOGITS), jnp.asarray(LOGITS + 7)), 0, atol=1e-6)
    gradient = jax.grad(lambda z: kl_divergence(jnp.asarray(LOGITS), z).sum())(jnp.asarray(LOGITS))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize('size', [1e2, 1e4, 1e30])
def test_large_logits_stay_finite(size):
    z, y = jnp.array([[size, -size, 0.], [-size, size, size]]), jnp.array([1, 0])
    for loss in (lambda z: cross_entropy(z, y), lambda z: cross_entropy(z, y, label_smoothing=.1),
                 lambda z: margin(z, y), lambda z: kl_divergence(z, -z), lambda z: kl_divergence(-z, z)):
        assert np.isfinite(loss(z)).all()
        assert np.isfinite(jax.grad(lambda z, loss=loss: loss(z).sum())(z)).all()


def test_ruled_out_classes_stay_finite():
    z, y = jnp.array([[0., -jnp.inf, 1.], [-jnp.inf, 2., 0]]), jnp.array([0, 2])
    finite = jnp.where(jnp.isinf(z), -30, z)
    for loss in (lambda z: cross_entropy(z, y), lambda z: margin(z, y), lambda z: kl_divergence(z, finite),
                 lambda z: kl_divergence(z, 2 * z), lambda z: kl_divergence(3 * z, z)):
        value, gradient = jax.value_and_grad(lambda z, loss=loss: loss(z).sum())(z)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(value, loss(finite).sum(), rtol=1e-5)


def test_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        z, y = jnp.asarray(LOGITS[:3], jnp.float64), jnp.asarray(LABELS[:3])
        reference = jnp.asarray(LOGITS[3:6], jnp.float64)
        check_grads(lambda z: cross_entropy(z, y, label_smoothing=.1), (z,), 1, ('rev',))
        check_grads(lambda a, b: kl_divergence(a, b), (reference, z), 1, ('rev',))
        check_grads(lambda z: margin(z, y), (z,), 1, ('rev',))


def test_only_a_clear_decision_is_right():
    inf, nan = jnp.inf, jnp.nan
    logits = jnp.array([[1., 2, 0], [3, 2, 0], [nan, 2, 0], [0, nan, 0], [0, inf, 0], [-inf, 2, 0], [-inf] * 3])
    right = prediction_is_right(logits, jnp.ones(7, int))
    np.testing.assert_array_equal(right, [True, False, False, False, False, True, False])


def test_dlr_by_hand():
    z = jnp.array([[5., 3, 1, -7], [5, 3, 1, -7], [5, 3, 1, -7], [5, 3, 1, -7], [2, 2, 2, 2]])
    np.testing.assert_allclose(dlr(z, jnp.array([0, 1, 2, 3, 0])), [-.5, .5, 1, 3, 0], rtol=1e-6)
    np.testing.assert_allclose(targeted_dlr(z[:3], jnp.array([0, 0, 1]), jnp.array([1, 3, 2])),
                               [-2 / 8, -12 / 8, -2 / 8], rtol=1e-6)
    np.testing.assert_allclose(targeted_margin(z[:2], jnp.array([0, 2]), jnp.array([3, 1])), [-12, 2])
    np.testing.assert_allclose(targeted_margin(jnp.array([[1., 4]]), jnp.array([1]), jnp.array([0])), [-3])


def test_dlr_is_that_of_sorted_logits_and_blind_to_shift_and_scale():
    ordered = -np.sort(-LOGITS.astype(np.float64), axis=1)
    truth, target = LOGITS[np.arange(12), LABELS].astype(np.float64), (LABELS + 1) % 4
    other = np.where(LOGITS.argmax(1) == LABELS, ordered[:, 1], ordered[:, 0])
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    np.testing.assert_allclose(dlr(logits, labels), (other - truth) / (ordered[:, 0] - ordered[:, 2]), rtol=1e-5)
    np.testing.assert_array_equal(dlr(logits, labels) > 0, LOGITS.argmax(1) != LABELS)
    expected = (LOGITS[np.arange(12), target] - truth) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2)
    np.testing.assert_allclose(targeted_dlr(logits, labels, jnp.asarray(target)), expected, rtol=1e-5)
    np.testing.assert_allclose(dlr(4 * logits - 8, labels), dlr(logits, labels), rtol=1e-4, atol=1e-6)


def test_targeted_margin_is_a_difference_of_cross_entropies():
    logits, labels, target = jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray((LABELS + 2) % 4)
    difference = cross_entropy(logits, labels) + targeted_cross_entropy(logits, labels, target)
    np.testing.assert_allclose(targeted_margin(logits, labels, target), difference, rtol=1e-4, atol=1e-5)


def test_dlr_needs_its_classes_and_keeps_finite_gradients():
    with pytest.raises(ValueError, match='dlr needs at least 3 classes, not 2: use margin'):
        dlr(jnp.zeros((1, 2)), jnp.zeros(1, int))
    with pytest.raises(ValueError, match='targeted_dlr needs at least 4 classes, not 3: use targeted_margin'):
        targeted_dlr(jnp.zeros((1, 3)), jnp.zeros(1, int), jnp.ones(1, int))
    z = jnp.array([[1., 1, 1, 1], [3, 3, 0, -jnp.inf], [1e30, -1e30, 0, 0], [2, 2, 2, 1]])
    labels, target = jnp.array([0, 1, 0, 3]), jnp.array([1, 0, 2, 0])
    for loss in (lambda z: dlr(z, labels), lambda z: targeted_dlr(z, labels, target)):
        value, gradient = jax.value_and_grad(lambda z, loss=loss: loss(z).sum())(z)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_gradients_of_dlr_are_those_of_finite_differences():
    with jax.enable_x64(True):
        z, y, t = jnp.asarray(LOGITS[:3], jnp.float64), jnp.asarray(LABELS[:3]), jnp.asarray((LABELS[:3] + 1) % 4)
        check_grads(lambda z: dlr(z, y), (z,), 1, ('rev',))
        check_grads(lambda z: targeted_dlr(z, y, t), (z,), 1, ('rev',))
