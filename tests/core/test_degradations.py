"""What happens to images, against SciPy and by hand."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from medrobust_jax.core import degradations, rng

ghosting = jax.jit(degradations.ghosting)


def random_images(shape=(2, 20, 26, 1), seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape).astype(np.float32))


@pytest.mark.parametrize('shape', [(2, 20, 26, 1), (2, 30, 2), (2, 9, 11, 10, 1)])
def test_gaussian_blur_is_scipys(shape):
    images, sigma = random_images(shape), np.array([.7, 3.])
    blurred = jax.jit(degradations.gaussian_blur)(images, jnp.asarray(sigma, jnp.float32))
    for image, width, mine in zip(images, sigma, blurred, strict=True):
        axes = tuple(range(image.ndim - 1))
        theirs = ndimage.gaussian_filter(np.asarray(image, np.float64), width, axes=axes, truncate=9)
        np.testing.assert_allclose(mine, theirs, atol=2e-6)


def test_motion_blur_is_a_mean_of_scipys_shifts():
    images, length, angle = random_images(), np.array([3.3, 5.]), np.array([.4, 2.5])
    blur = jax.jit(partial(degradations.motion_blur, longest=6))
    blurred = blur(images, jnp.asarray(length), jnp.asarray(angle))
    for row in range(2):
        offsets = np.linspace(-.5, .5, 7)[:, None] * length[row] * [np.sin(angle[row]), np.cos(angle[row])]
        image = np.asarray(images[row, ..., 0], np.float64)
        theirs = np.mean([ndimage.shift(image, -offset, order=1, mode='nearest') for offset in offsets], axis=0)
        np.testing.assert_allclose(blurred[row, ..., 0], theirs, atol=2e-6)


@pytest.mark.parametrize('along_rows', [False, True])
def test_ghosting_of_a_constant_shift_is_a_translation(along_rows):
    images = random_images()
    ones = jnp.ones(2)
    moved = ghosting(images, 3 * ones, 1e9 * ones, jnp.pi / 2 * ones, jnp.full(2, along_rows))
    np.testing.assert_allclose(moved, np.roll(images, 3, axis=2 if along_rows else 1), atol=1e-4)


def test_ghosts_lie_a_period_apart():
    point = jnp.zeros((1, 32, 32, 1)).at[0, 8, 16].set(1)
    one = jnp.ones(1)
    found = ghosting(point, 2 * one, 4 * one, 0 * one, jnp.array([False]))[0, ..., 0]
    lit = np.flatnonzero(np.asarray(found[:, 16]) > .02)
    assert len(lit) > 4
    assert np.all((lit - 8) % 8 <= 2) or np.all((lit - 6) % 8 <= 4)  # near 8 + 32/4 m, blurred by the motion
    np.testing.assert_allclose(np.delete(np.asarray(found), 16, axis=1), 0, atol=1e-5)


def test_low_resolution_keeps_low_frequencies_alone():
    images = random_images((2, 16, 16, 1))
    found = jax.jit(degradations.low_resolution)(images, jnp.array([1., 2.]))
    np.testing.assert_allclose(found[0], images[0], atol=1e-5)
    line = np.abs(np.fft.fftfreq(16, 1 / 16))
    kept = (line <= 4)[:, None] & (line <= 4)
    by_hand = np.fft.ifft2(np.fft.fft2(images[1, ..., 0]) * kept).real
    np.testing.assert_allclose(found[1, ..., 0], by_hand, atol=1e-5)


def test_bias_field_is_smooth_and_of_the_strength_asked_for():
    images = random_images() * .5 + .5
    terms = degradations.bias_terms(2, 3)
    assert len(terms) == 9
    bias_field = jax.jit(degradations.bias_field)
    coefficients = rng.uniform(rng.example_keys(0, np.arange(2)), (9,), -1, 1)
    found = bias_field(images, coefficients, jnp.array([.3, .8]))
    np.testing.assert_allclose(found.max(axis=(1, 2, 3)), images.max(axis=(1, 2, 3)), rtol=1e-6)
    basis = degradations.bias_basis((20, 26), 3)
    assert np.abs(basis).max() <= 1
    columns = np.concatenate([np.ones((1, 20, 26)), basis]).reshape(10, -1).T
    for row, strength in enumerate((.3, .8)):
        gain = np.log(np.asarray(found[row] / images[row], np.float64)).ravel()
        solved, residual, *_ = np.linalg.lstsq(columns, gain, rcond=None)
        assert residual[0] < 1e-8
        assert np.abs(columns[:, 1:] @ solved[1:]).max() == pytest.approx(strength, rel=1e-4)
        np.testing.assert_allclose(solved[1:] / solved[1], coefficients[row] / coefficients[row, 0], rtol=1e-3)
    same = bias_field(images, jnp.zeros((2, 9)), jnp.ones(2))
    np.testing.assert_allclose(same, images, rtol=1e-6)
