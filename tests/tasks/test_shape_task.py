"""The criterion, the decisions and the metrics of shape regression."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core.polygons import rasterize, spine_contour
from medrobust_jax.metrics import shape as metrics
from medrobust_jax.tasks.shape import shape

GENERATOR = np.random.default_rng(0)
SIZE = (20, 10)


def example(batch=4):
    """Spines of two vertebrae with their masks, and outputs that are right."""
    corners = np.array([[.2, .1], [.8, .1], [.2, .4], [.8, .4], [.3, .5], [.7, .5], [.3, .9], [.7, .9]])
    points = np.clip(corners + GENERATOR.normal(0, .01, size=(batch, 8, 2)), 0, 1).astype(np.float32)
    masks = rasterize(points[:, spine_contour(8)], SIZE).astype(np.int32)
    outputs = {'points': jnp.asarray(points), 'mask': jnp.asarray(40. * masks - 20, jnp.float32)}
    return outputs, {'points': jnp.asarray(points), 'segmentation': jnp.asarray(masks)}


TASK = shape(8, size=SIZE, contour='spine', cobb_angles=True)


def test_distances_decide():
    outputs, targets = example()
    shift = jnp.array([0., .04, .06, .2])[:, None, None] * jnp.array([0., 1.])
    moved = {**outputs, 'points': outputs['points'] + shift}
    np.testing.assert_allclose(TASK.quality(moved, targets), -20 * shift[:, 0, 1], atol=1e-5)
    np.testing.assert_array_equal(TASK.acceptable(moved, targets), [True, True, False, False])
    strict = shape(8, size=SIZE, threshold=(-.5,))
    np.testing.assert_array_equal(strict.acceptable(moved, targets), [True, False, False, False])
    gradient = jax.grad(lambda o: TASK.quality(o, targets).sum())(outputs)
    assert np.isfinite(gradient['points']).all()
    for value in (jnp.nan, jnp.inf):
        broken = {'points': outputs['points'].at[1, 0, 0].set(value),
                  'mask': outputs['mask'].at[2, 3, 3].set(value)}
        np.testing.assert_array_equal(TASK.acceptable(broken, targets), [True, False, False, True])
    assert TASK.num_outputs == 16
    assert TASK.threshold_of(np.array([-1., -1., -1.])) == (-1.,)


def test_metrics_from_outputs_and_from_decisions():
    outputs, targets = example(batch=10)
    moved = {**outputs, 'points': outputs['points'].at[:, :, 0].add(.2)}
    arrays = jax.tree.map(np.asarray, (moved, jax.jit(TASK.predict)(moved), targets))
    got = TASK.metrics(arrays[0], arrays[2], np.arange(10) // 2)
    assert got == TASK.verdict_metrics(arrays[1], arrays[2], np.arange(10) // 2)
    assert got['mean_point_distance'].value == pytest.approx(2, rel=1e-4)
    assert got['mask_dice'].value == 1
    polygon = rasterize(arrays[0]['points'][:, spine_contour(8)], SIZE)
    assert got['polygon_dice'].value == pytest.approx(metrics.dice(polygon, arrays[2]['segmentation']).mean())
    assert .4 < got['polygon_dice'].value < .9
    assert got['cobb_main_error'].value == pytest.approx(0, abs=1e-3)
    right = TASK.metrics(*jax.tree.map(np.asarray, (outputs, targets)))
    assert right['polygon_dice'].value == 1


def test_dice_by_hand():
    a, b = np.zeros((3, 2, 2), bool), np.zeros((3, 2, 2), bool)
    a[0], b[0, 0] = True, True
    a[1] = True
    np.testing.assert_allclose(metrics.dice(a, b), [4 / 6, 0, 1])


def test_wiring_and_refusals():
    outputs, targets = example()
    batch = {**targets, 'image': None, 'mask': None}
    assert TASK.targets(batch).keys() == {'points', 'segmentation'}
    TASK.check_targets(jax.tree.map(np.asarray, targets))
    for change, message in (({'segmentation': targets['segmentation'].at[2].set(0)}, 'row 2 has no foreground'),
                            ({'segmentation': targets['segmentation'][:, :9]}, r'is not \(4, 20, 10\)'),
                            ({'points': targets['points'].at[3, 1, 0].set(2)}, 'row 3, point 1 has x = 2')):
        with pytest.raises(ValueError, match=message):
            TASK.check_targets({**targets, **change})
    with pytest.raises(ValueError, match='shape targets lack segmentation'):
        TASK.check_targets({'points': targets['points']})
    with pytest.raises(ValueError, match='shape needs num_points >= 3'):
        shape(2, size=SIZE)
    with pytest.raises(ValueError, match="did you mean 'spine'"):
        shape(8, size=SIZE, contour='spines')
    with pytest.raises(ValueError, match="cobb_angles needs contour='spine'"):
        shape(8, size=SIZE, cobb_angles=True)
    np.testing.assert_allclose(TASK.divergence(outputs, outputs), 0, atol=1e-6)
