"""The criterion, the calibration, the decisions and the metrics of landmark detection."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core import heatmaps
from medrobust_jax.metrics.cobb import cobb_angles
from medrobust_jax.tasks.landmarks import landmarks, robust_threshold

GENERATOR = np.random.default_rng(0)
SIZE = (16, 12)


def maps_of(points, *, radius=.1, sharp=20.):
    heat, offsets = heatmaps.disk_maps(points, size=SIZE, radius=heatmaps.radius_of(SIZE[0], radius))
    return jnp.concatenate([sharp * (heat - .5), offsets[..., 0], offsets[..., 1]], axis=-1)


def example(num_points=3, batch=4):
    points = jnp.asarray(GENERATOR.uniform(size=(batch, num_points, 2)), jnp.float32)
    return maps_of(points), points


def test_right_maps_are_acceptable_and_wrong_ones_are_not():
    task = landmarks(3, size=SIZE, radius=.1)
    maps, points = example()
    assert task.num_outputs == 9
    assert task.acceptable(maps, points).all()
    assert not task.acceptable(-maps, points).any()
    np.testing.assert_allclose(jax.jit(task.predict)(maps), points, atol=2e-3)
    np.testing.assert_array_equal(task.quality(maps, points), -task.loss(maps, points))
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        broken = maps.at[1, 0, 0, 2].set(value).at[2, 0, 0, 8].set(value)
        np.testing.assert_array_equal(task.acceptable(broken, points), [True, False, False, True])


def test_thresholds_are_robust_and_separate_like_the_loss():
    qualities = -GENERATOR.normal(2, .5, size=4001)
    qualities[:100] = -1e6  # a few failures do not move it
    (threshold,) = robust_threshold(qualities, z=3.)
    assert threshold == pytest.approx(-3.5, abs=.1)
    task = landmarks(3, size=SIZE, radius=.1)
    maps, points = example()
    noisy = maps + jnp.linspace(0, 3, 4)[:, None, None, None] * GENERATOR.normal(size=maps.shape)
    quality = task.quality(noisy, points)
    middle = landmarks(3, size=SIZE, radius=.1, threshold=(float(quality[1:3].mean()),))
    np.testing.assert_array_equal(middle.acceptable(noisy, points), [True, True, False, False])
    assert task.threshold_of(np.asarray(quality)) == robust_threshold(np.asarray(quality), z=3.)


def test_metrics_take_maps_or_points():
    task = landmarks(8, size=SIZE, radius=.1, unit='percent', cobb_angles=True)
    points = jnp.asarray(GENERATOR.uniform(.2, .8, size=(20, 8, 2)), jnp.float32)
    moved = points.at[:, 0, 0].add(.03)
    got = task.metrics(np.asarray(maps_of(moved)), np.asarray(points), np.arange(20) // 2)
    again = task.verdict_metrics(np.asarray(moved), np.asarray(points), np.arange(20) // 2)
    for name, estimate in got.items():
        assert estimate.value == pytest.approx(again[name].value, abs=.2), name
    assert again['mean_radial_error'].value == pytest.approx(.03 * 75 / 8, rel=1e-3)
    assert again['detected_within_2'].value == pytest.approx(7 / 8)
    angles = [cobb_angles(np.asarray(p) * [75, 100], 100)[:, 0] for p in (moved, points)]
    assert again['cobb_main_error'].value == pytest.approx(np.abs(angles[0] - angles[1]).mean(), rel=1e-3)
    np.testing.assert_allclose(task.metrics(np.asarray(moved), np.asarray(points))['mean_radial_error'].value,
                               again['mean_radial_error'].value)


def test_wiring_and_refusals():
    task = landmarks(3, size=SIZE)
    maps, points = example()
    assert task.targets({'points': points, 'image': None}) is points
    np.testing.assert_allclose(task.divergence(maps, maps), 0, atol=1e-6)
    with pytest.raises(ValueError, match='row 1, point 2 has y'):
        task.check_targets(np.asarray(points.at[1, 2, 1].set(-.1)))
    for options in ({'radius': 0.}, {'threshold': (1., 2.)}, {'z': 0.}):
        with pytest.raises(ValueError, match='landmarks needs'):
            landmarks(3, size=SIZE, **options)
    with pytest.raises(ValueError, match='four landmarks per vertebra'):
        landmarks(6, size=SIZE, cobb_angles=True)
