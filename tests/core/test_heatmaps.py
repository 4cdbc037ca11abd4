"""Maps of points: by hand, round trips, edges, gradients."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from medrobust_jax.core import heatmaps

GENERATOR = np.random.default_rng(0)
EDGES = [[0, 0], [1, 1], [1, 0], [.5, 1], [.25, .125]]


def test_disks_and_offsets_are_the_equations():
    points = np.array([[[.4, .3], [.9, .05]]])
    heat, offsets = heatmaps.disk_maps(jnp.asarray(points, jnp.float32), size=(8, 5), radius=2.)
    assert heat.shape == (1, 8, 5, 2)
    for row in range(8):
        for column in range(5):
            away = points[0] * [5, 8] - [column + .5, row + .5]
            np.testing.assert_array_equal(heat[0, row, column], np.hypot(*away.T) <= 2)
            np.testing.assert_allclose(offsets[0, row, column], away / 2, atol=1e-6)


@pytest.mark.parametrize('radius', [1., 2.5, 6.])
def test_round_trip_is_exact_also_at_the_edges(radius):
    points = jnp.asarray(np.stack([np.array(EDGES), GENERATOR.uniform(size=(5, 2))]), jnp.float32)
    heat, offsets = jax.jit(lambda p: heatmaps.disk_maps(p, size=(16, 12), radius=radius))(points)
    assert (heat.sum((1, 2)) > 0).all()
    np.testing.assert_allclose(heatmaps.decode(40 * (heat - .5), offsets, radius=radius), points, atol=2e-6)


def test_votes_are_weighted_by_heat():
    logits = np.full((1, 6, 6, 1), -30., np.float32)
    logits[0, 2, 1:4, 0] = [0., 1., -1.]
    logits[0, 5, 5, 0] = .9  # a second spot, out of reach
    offsets = GENERATOR.normal(size=(1, 6, 6, 1, 2)).astype(np.float32)
    got = heatmaps.decode(jnp.asarray(logits), jnp.asarray(offsets), radius=1.5)[0, 0]
    weights = 1 / (1 + np.exp([0., -1., 1.]))
    votes = np.array([[1.5, 2.5], [2.5, 2.5], [3.5, 2.5]]) + 1.5 * offsets[0, 2, 1:4, 0]
    np.testing.assert_allclose(got * 6, weights @ votes / weights.sum(), rtol=1e-5)


def test_gaussians_peak_at_the_point():
    heat = heatmaps.gaussian_heatmaps(jnp.array([[[.5, .25]]]), size=(6, 7), sigma=2.)
    assert heat[0, 1, 3, 0] == 1
    np.testing.assert_allclose(heat[0, 1, 5, 0], np.exp(-4 / 8), rtol=1e-6)


def test_decoding_is_differentiable_and_survives_extreme_logits():
    logits = jnp.asarray(GENERATOR.normal(size=(2, 5, 4, 2)), jnp.float32)
    offsets = jnp.asarray(GENERATOR.normal(size=(2, 5, 4, 2, 2)), jnp.float32)
    check_grads(lambda a, b: heatmaps.decode(a, b, radius=2.), (logits, offsets), order=1, modes=['rev'],
                atol=2e-2, rtol=2e-2)
    for scale in (1e4, -1e4):
        gradient = jax.grad(lambda a, s=scale: heatmaps.decode(s * jnp.abs(a), offsets, radius=2.).sum())(logits)
        assert np.isfinite(gradient).all()
    alone = heatmaps.decode(logits[1:], offsets[1:], radius=2.)
    np.testing.assert_allclose(heatmaps.decode(logits, offsets, radius=2.)[1:], alone, rtol=1e-6)


def test_channels_split_and_refusals():
    maps = jnp.arange(6.)[None, None, None]
    heat, offsets = heatmaps.split_maps(maps)
    np.testing.assert_array_equal(heat[0, 0, 0], [0, 1])
    np.testing.assert_array_equal(offsets[0, 0, 0], [[2, 4], [3, 5]])
    with pytest.raises(ValueError, match=r'\[B, H, W, 3 \* points\], not \(1, 1, 1, 5\)'):
        heatmaps.split_maps(maps[..., :5])
    assert heatmaps.radius_of(100, .05) == 5
    assert heatmaps.radius_of(8, .05) == 1
