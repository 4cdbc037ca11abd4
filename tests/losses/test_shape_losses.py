"""Losses of shape regression against NumPy, and their limits."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from medrobust_jax.losses import shape

GENERATOR = np.random.default_rng(0)


def example(batch=3, points=5, height=6, width=4, reconstruct=False):
    outputs = {'points': GENERATOR.uniform(size=(batch, points, 2)).astype(np.float32),
               'mask': GENERATOR.normal(size=(batch, height, width)).astype(np.float32)}
    if reconstruct:
        outputs['reconstruction_error'] = np.array([.1, .2, .3], np.float32)
    targets = {'points': GENERATOR.uniform(size=(batch, points, 2)).astype(np.float32),
               'segmentation': GENERATOR.integers(0, 3, size=(batch, height, width)).astype(np.int32)}
    return jax.tree.map(jnp.asarray, (outputs, targets))


def by_hand(outputs, targets):
    """MAE, BCE, Dice, in float64."""
    o, t = jax.tree.map(lambda a: np.asarray(a, np.float64), (outputs, targets))
    p, foreground = 1 / (1 + np.exp(-o['mask'])), (t['segmentation'] > 0).astype(float)
    mae = abs(o['points'] - t['points']).mean((1, 2))
    bce = -(foreground * np.log(p) + (1 - foreground) * np.log(1 - p)).mean((1, 2))
    dice = (2 * (p * foreground).sum((1, 2)) + 1) / (p.sum((1, 2)) + foreground.sum((1, 2)) + 1)
    return mae, bce, dice


@pytest.mark.parametrize('reconstruct', [False, True])
def test_the_clean_loss_is_the_papers(reconstruct):
    outputs, targets = example(reconstruct=reconstruct)
    mae, bce, dice = by_hand(outputs, targets)
    extra = np.array([.1, .2, .3]) if reconstruct else 0
    np.testing.assert_allclose(shape.shape_loss(outputs, targets), (bce + 1 - dice) / 2 + mae + extra, rtol=1e-5)


def test_attack_losses_are_summed_squares_and_the_missing_dice():
    outputs, targets = example()
    squares = ((np.asarray(outputs['points'], np.float64) - np.asarray(targets['points'])) ** 2).sum((1, 2))
    np.testing.assert_allclose(shape.shape_regression_attack_loss(outputs, targets), squares, rtol=1e-5)
    np.testing.assert_allclose(shape.shape_mask_attack_loss(outputs, targets), 1 - by_hand(outputs, targets)[2],
                               rtol=1e-5)


def test_limits_of_dice():
    full, none = jnp.ones((1, 4, 4)), jnp.zeros((1, 4, 4))
    assert shape.soft_dice(none, none)[0] == 1
    assert shape.soft_dice(full, full)[0] == 1
    assert shape.soft_dice(full, none)[0] == pytest.approx(1 / 17)


def test_distance_and_divergence_vanish_where_outputs_are_equal():
    outputs, _ = example()
    other, _ = example()
    sharp = {**outputs, 'mask': 200 * jnp.sign(outputs['mask'])}
    np.testing.assert_allclose(shape.output_distance(sharp, sharp), 0, atol=1e-6)
    np.testing.assert_allclose(shape.shape_divergence(outputs, outputs), 0, atol=1e-6)
    assert (shape.shape_divergence(outputs, other) > 0).all()
    squares = ((np.asarray(sharp['points']) - np.asarray(other['points'])) ** 2).mean((1, 2))
    moved = {**sharp, 'points': other['points']}
    np.testing.assert_allclose(shape.output_distance(moved, sharp), squares, rtol=1e-4)
    rebuilt = {**sharp, 'reconstruction_error': jnp.array([.1, .2, .3])}
    np.testing.assert_allclose(shape.output_distance(rebuilt, sharp), [.1, .2, .3], rtol=1e-4)


@pytest.mark.parametrize('loss', [shape.shape_loss, shape.shape_regression_attack_loss,
                                  shape.shape_mask_attack_loss], ids=lambda f: f.__name__)
def test_gradients_are_right_and_finite_where_outputs_are_extreme(loss):
    outputs, targets = example()
    check_grads(lambda o: loss(o, targets), (outputs,), order=1, modes=['rev'], atol=2e-2, rtol=2e-2)
    extreme = {'points': 1e4 * outputs['points'], 'mask': 1e4 * outputs['mask']}
    gradient = jax.grad(lambda o: loss(o, targets).sum())(extreme)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_masks_of_another_size_are_refused():
    outputs, targets = example()
    with pytest.raises(ValueError, match=r'must have one shape \[B, H, W\]'):
        shape.shape_loss({**outputs, 'mask': outputs['mask'][:, :3]}, targets)
