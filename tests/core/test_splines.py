"""Thin-plate splines against SciPy, and warps by them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from medrobust_jax.core import splines

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize('count', [5, 68])
def test_splines_are_scipys_and_hit_their_points(count):
    source = GENERATOR.uniform(size=(count, 2))
    target = source + GENERATOR.normal(0, .03, size=(count, 2))
    places = GENERATOR.uniform(-.1, 1.1, size=(50, 2))
    expected = RBFInterpolator(source, target, kernel='thin_plate_spline', degree=1)(places)
    for precise, at_points, elsewhere in ((False, 1e-4, 5e-4), (True, 1e-11, 1e-9)):
        with jax.enable_x64(precise):
            a, b, c = (jnp.asarray(array, float) for array in (source, target, places))
            spline = jax.jit(splines.fit_spline)(a, b)
            np.testing.assert_allclose(splines.move_points(spline, a), target, atol=at_points)
            np.testing.assert_allclose(splines.move_points(spline, c), expected, atol=elsewhere)


def test_warps_carry_pixels_with_their_points():
    height, width = 40, 30
    own = np.array([[.2, .2], [.8, .2], [.2, .8], [.8, .8], [.5, .4]])
    wanted = own + np.array([[0, 0], [0, 0], [0, 0], [0, 0], [.1, .15]])
    x, y = np.meshgrid((np.arange(width) + .5) / width, (np.arange(height) + .5) / height)
    blob = np.exp(-(((x - .5) * width) ** 2 + ((y - .4) * height) ** 2) / 8)
    spline = splines.fit_spline(jnp.asarray(wanted, jnp.float32), jnp.asarray(own, jnp.float32))
    moved = np.asarray(splines.warp(jnp.asarray(blob, jnp.float32), spline, order=1))
    row, column = np.unravel_index(moved.argmax(), moved.shape)
    np.testing.assert_allclose([(column + .5) / width, (row + .5) / height], wanted[4], atol=.03)
    mask = (blob > .5).astype(np.int32)
    carried = splines.warp(jnp.asarray(mask), spline, order=0)
    assert carried.dtype == jnp.int32
    assert carried[row, column] == 1
    still = splines.fit_spline(jnp.asarray(own, jnp.float32), jnp.asarray(own, jnp.float32))
    same = splines.warp(jnp.asarray(blob[..., None], jnp.float32), still, order=1)
    np.testing.assert_allclose(same[..., 0], blob, atol=1e-5)


def test_gradients_are_finite_at_the_control_points():
    source = jnp.asarray(GENERATOR.uniform(size=(6, 2)), jnp.float32)

    def total(target, places):
        return jnp.sum(splines.move_points(splines.fit_spline(source, target), places) ** 2)

    gradients = jax.grad(total, argnums=(0, 1))(source + .01, source)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
