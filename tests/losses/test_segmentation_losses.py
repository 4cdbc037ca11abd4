"""Segmentation losses against sums by hand in NumPy, their gradients and their limits."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special
from scipy.spatial.distance import jensenshannon

from medrobust_jax.losses import pixelwise
from medrobust_jax.losses import segmentation as losses

GENERATOR = np.random.default_rng(0)
SHAPES = [(6, 5), (3, 4, 5)]


def case(shape, classes=3, batch=4, scale=2.):
    logits = GENERATOR.normal(scale=scale, size=(batch, *shape, classes)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(GENERATOR.integers(0, classes, (batch, *shape)))


def by_hand(logits, targets):
    """Softmax and one-hot targets, `[B, pixels, C]` float64."""
    p = special.softmax(np.asarray(logits, np.float64), axis=-1).reshape(len(logits), -1, logits.shape[-1])
    return p, np.eye(logits.shape[-1])[np.asarray(targets).reshape(len(logits), -1)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_values_by_hand(shape):
    logits, targets = case(shape)
    p, y = by_hand(logits, targets)
    overlap, total = (p * y).sum(1)[:, 1:], (p + y).sum(1)[:, 1:]
    dice = ((2 * overlap + 1) / (total + 1)).mean(1)
    ce = -np.log((p * y).sum(-1))
    np.testing.assert_allclose(losses.soft_dice(logits, targets), dice, rtol=1e-5)
    np.testing.assert_allclose(losses.soft_iou(logits, targets),
                               ((overlap + 1) / (total - overlap + 1)).mean(1), rtol=1e-5)
    np.testing.assert_allclose(losses.mean_cross_entropy(logits, targets), ce.mean(1), rtol=1e-5)
    np.testing.assert_allclose(losses.dice_cross_entropy(logits, targets), 1 - dice + ce.mean(1), rtol=1e-5)
    other = case(shape)[0]
    q, _ = by_hand(other, targets)
    np.testing.assert_allclose(losses.pixel_kl(logits, other), (p * np.log(p / q)).sum(-1).mean(1), rtol=1e-4)

    right = p.argmax(-1) == y.argmax(-1)
    np.testing.assert_allclose(pixelwise.pixel_error(logits, targets), 1 - right.mean(1), rtol=1e-6)
    np.testing.assert_allclose(pixelwise.masked_cross_entropy(logits, targets), (ce * right).mean(1), rtol=1e-5)
    share = np.array([0, .1, .5, 1])
    weights = np.where(right, 1 - share[:, None], share[:, None])
    np.testing.assert_allclose(pixelwise.balanced_cross_entropy(logits, targets, jnp.asarray(share)),
                               (weights * ce).mean(1), rtol=1e-5)
    cosine = (p * y).sum(-1) / np.linalg.norm(p, axis=-1)
    np.testing.assert_allclose(pixelwise.cosine_cross_entropy(logits, targets), (cosine * ce).mean(1), rtol=1e-5)
    js = jensenshannon(p, y, axis=-1)**2
    np.testing.assert_allclose(pixelwise.jensen_shannon(logits, targets), js.mean(1), rtol=1e-4)
    z = np.asarray(logits, np.float64).reshape(p.shape)
    normalized = -1 * right * (z * y).sum(-1) / np.linalg.norm(z, axis=-1)
    np.testing.assert_allclose(pixelwise.masked_normalized_logit(logits, targets), normalized.mean(1), rtol=1e-4)


@pytest.mark.parametrize('name', ['soft_dice', 'soft_iou', 'dice_cross_entropy', 'jensen_shannon',
                                  'masked_normalized_logit'])
def test_gradients(name):
    loss = getattr(losses, name, None) or getattr(pixelwise, name)
    with jax.enable_x64(True):
        logits, targets = case((3, 3), batch=2)
        logits = jnp.asarray(logits, jnp.float64)
        # Away from ties: a finite difference must not change which pixels are right.
        check_grads(lambda z: loss(z, targets).sum(), (logits,), order=1, modes=['rev'], eps=1e-6)


def test_cospgds_weights_are_constants():
    logits, targets = case((3, 3))
    p = jax.nn.softmax(logits, axis=-1)
    weights = jnp.take_along_axis(p, targets[..., None], -1)[..., 0] / jnp.linalg.norm(p, axis=-1)
    expected = jax.grad(lambda z: (weights * losses.pixel_cross_entropy(z, targets)).sum() / 9)(logits)
    gradient = jax.grad(lambda z: pixelwise.cosine_cross_entropy(z, targets).sum())(logits)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


ALL = [losses.dice_cross_entropy, losses.mean_cross_entropy, pixelwise.masked_cross_entropy,
       pixelwise.cosine_cross_entropy, pixelwise.jensen_shannon, pixelwise.masked_normalized_logit]


@pytest.mark.parametrize('loss', ALL, ids=lambda f: f.__name__)
def test_finite_gradients_at_sure_answers_and_independence_of_neighbors(loss):
    logits, targets = case((4, 4), scale=1e3)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: loss(z, targets).sum()))(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    zero = jax.jit(jax.grad(lambda z: loss(z, targets).sum()))(jnp.zeros_like(logits))
    assert np.isfinite(zero).all()
    poisoned = logits.at[0].set(jnp.nan)
    np.testing.assert_array_equal(loss(poisoned, targets)[1:], loss(logits, targets)[1:])


def test_limits():
    _, targets = case((6, 6))
    sure = 50. * jax.nn.one_hot(targets, 3)
    for loss in (losses.dice_cross_entropy, losses.mean_cross_entropy, pixelwise.jensen_shannon):
        np.testing.assert_allclose(loss(sure, targets), 0, atol=1e-5)
    wrong = 50. * jax.nn.one_hot((targets + 1) % 3, 3)
    np.testing.assert_allclose(pixelwise.jensen_shannon(wrong, targets), np.log(2), rtol=1e-5)
    np.testing.assert_array_equal(pixelwise.masked_cross_entropy(wrong, targets), 0)
    # A class that nobody names has Dice 1, and one falsely named s / (n + s).
    empty = jnp.zeros((1, 6, 6), jnp.int32)
    np.testing.assert_allclose(losses.soft_dice(50. * jax.nn.one_hot(empty, 2), empty), 1, atol=1e-5)
    np.testing.assert_allclose(losses.soft_dice(50. * jax.nn.one_hot(empty + 1, 2), empty), 1 / 37, rtol=1e-5)


def test_deep_supervision_weighs_the_sizes():
    logits, targets = case((8, 6))
    half, quarter = case((4, 3))[0], case((2, 2))[0]
    outputs = {'logits': logits, 'coarser': (half, quarter)}
    one = losses.dice_cross_entropy
    expected = (one(logits, targets) + one(half, targets[:, ::2, ::2]) / 2
                + one(quarter, targets[:, ::4, ::4]) / 4) / 1.75
    np.testing.assert_allclose(one(outputs, targets), expected, rtol=1e-6)
    for ignoring in (losses.mean_cross_entropy, losses.soft_dice, losses.best_dice, pixelwise.pixel_error):
        np.testing.assert_array_equal(ignoring(outputs, targets), ignoring(logits, targets))
    np.testing.assert_array_equal(losses.pixel_kl(outputs, logits), losses.pixel_kl(logits, logits))


def test_quality_of_classes_that_are_absent():
    maps = jnp.array([[[0, 0, 1, 1]], [[0, 0, 1, 1]], [[0, 0, 0, 0]], [[0, 0, 0, 0]], [[1, 1, 2, 2]]])
    guessed = jnp.array([[[0, 0, 1, 2]], [[2, 2, 2, 2]], [[0, 0, 0, 0]], [[0, 0, 1, 1]], [[1, 1, 2, 0]]])
    logits = 5. * jax.nn.one_hot(guessed, 3)
    third = 2 / 3  # Dice of one right pixel out of two, and of the background of a half empty map
    np.testing.assert_allclose(losses.best_dice(logits, maps), [third, 0, 1, third, 1], rtol=1e-6)
    worst = losses.best_dice(logits, maps, over='worst')
    np.testing.assert_allclose(worst, [third, 0, 1, third, third], rtol=1e-6)
    np.testing.assert_allclose(losses.best_dice(logits, maps, over='mean')[4], 5 / 6, rtol=1e-6)
    assert losses.best_dice(logits.at[0, 0, 3, 1].set(jnp.nan), maps)[0] == 0
    assert losses.best_dice(logits.at[0, 0, 3, 1].set(-jnp.inf), maps)[0] > 0


def test_refusals():
    logits, targets = case((4, 4))
    with pytest.raises(ValueError, match=r'logits \(4, 4, 4, 3\) need targets \(4, 4, 4\).*they are \(4,\)'):
        losses.dice_cross_entropy(logits, targets[:, 0, 0])
    with pytest.raises(ValueError, match="did you mean 'best'"):
        losses.best_dice(logits, targets, over='bets')
