"""Corruptions: identity, grading, independence, draws and gradients of all of them."""
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core import rng
from medrobust_jax.core.corruptions import CORRUPTIONS, DETERMINISTIC, LEVELS, SEVERITIES, level_of
from medrobust_jax.data.phantoms import render

SIZE, KINDS = 32, 6
GRADES = (0, .5, 1, 2, 3, 4, 5, 9)
PLANE = ('motion_blur', 'ghosting', 'jpeg')


@lru_cache
def compiled(name):
    """`(keys, images, severity) -> corrupted images, and the gradient of half their sum of squares`."""
    def both(keys, images, severity):
        found, pull_back = jax.vjp(lambda x: CORRUPTIONS[name](keys, x, severity), images)
        return found, pull_back(found)[0]

    return jax.jit(both)


@lru_cache
def batch():
    """Every phantom at every grade, with one key per phantom: keys, images and severities, `[48, ...]`."""
    phantoms = render(np.arange(KINDS) % 4, seed=3, size=SIZE).astype(np.float32) / 255
    phantoms[:, :1], phantoms[:, 1:2] = 0, 1  # where roots, powers and clips have no slope
    images = np.repeat(phantoms, len(GRADES), axis=0)
    keys = rng.example_keys(0, np.repeat(np.arange(KINDS), len(GRADES)))
    return keys, jnp.asarray(images), jnp.tile(jnp.asarray(GRADES, jnp.float32), KINDS)


@lru_cache
def both_of(name):
    return compiled(name)(*batch())


def graded(name):
    """`[phantom, grade, H, W, C]`."""
    return np.asarray(both_of(name)[0]).reshape(KINDS, len(GRADES), SIZE, SIZE, 1)


def psnr(images, clean):
    return -10 * np.log10(np.maximum(np.mean((images - clean) ** 2, axis=(-3, -2, -1)), 1e-12))


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_identity_at_zero_inside_the_box_and_worse_with_severity(name):
    found = graded(name)
    np.testing.assert_array_equal(found[:, 0], batch()[1].reshape(found.shape)[:, 0])
    assert found.min() >= 0
    assert found.max() <= 1
    quality = psnr(found, found[:, :1])
    assert np.all(np.diff(quality[:, 1:-1].mean(axis=0)) < -.2)  # from one grade to the next
    assert np.all(quality[:, 2] > quality[:, 6] + 2)  # for every image
    np.testing.assert_array_equal(found[:, -1], found[:, -2])  # beyond 5 is 5


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_an_image_does_not_depend_on_its_neighbors(name):
    keys, images, severity = batch()
    order = np.random.default_rng(0).permutation(len(images))
    shuffled, _ = compiled(name)(keys[order], images[order], severity[order])
    np.testing.assert_allclose(shuffled, graded(name).reshape(images.shape)[order], atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize('name', CORRUPTIONS)
def test_draws_come_from_the_key(name):
    keys, images, severity = batch()
    other = np.asarray(compiled(name)(rng.fold(keys, 1), images, severity)[0]).reshape(graded(name).shape)
    equal = np.all(other == graded(name), axis=(2, 3, 4))
    assert np.all(equal[:, 0])
    assert np.all(equal) if name in DETERMINISTIC else not np.any(equal[:, 5]) or name == 'gamma'
    if name == 'gamma':  # draws up or down alone
        darker = (graded(name)[:, 5] - graded(name)[:, 0]).mean(axis=(1, 2, 3)) < 0
        assert 0 < darker.sum() < KINDS


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_gradients_are_finite_and_not_zero(name):
    slope = np.asarray(both_of(name)[1]).reshape(graded(name).shape)
    np.testing.assert_array_equal(slope[:, 0], graded(name)[:, 0])  # of the identity
    assert np.all(np.isfinite(slope))
    assert np.all(np.mean(slope != 0, axis=(2, 3, 4)) > .2)


@pytest.mark.long
@pytest.mark.parametrize('name', CORRUPTIONS)
def test_color_and_other_dimensions(name):
    for shape in ((12, 18, 3), (24, 1), (6, 8, 7, 2)):
        images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, *shape)).astype(np.float16))
        keys = rng.example_keys(0, np.arange(2))
        if name in PLANE and len(shape) != 3:
            with pytest.raises(ValueError, match='height, width'):
                CORRUPTIONS[name](keys, images, jnp.ones(2))
        else:
            found = jax.eval_shape(CORRUPTIONS[name], keys, images, jnp.ones(2))
            assert (found.shape, found.dtype) == (images.shape, images.dtype)


def test_double_precision():
    with jax.enable_x64(True):
        images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 12, 12, 1)))
        keys = rng.example_keys(0, np.arange(2))
        for name in ('ghosting', 'jpeg', 'motion_blur', 'bias_field'):
            assert jax.eval_shape(CORRUPTIONS[name], keys, images, jnp.ones(2)).dtype == np.float64


def test_levels():
    assert set(LEVELS) == set(CORRUPTIONS)
    assert list(SEVERITIES) == [1, 2, 3, 4, 5]
    for name, levels in LEVELS.items():
        assert len(levels) == 6
        assert len({bool(step > 0) for step in np.diff(levels)}) == 1  # monotone
        np.testing.assert_allclose(level_of(name, jnp.arange(6.)), levels, rtol=1e-6)
        assert level_of(name, jnp.array([2.5]))[0] == pytest.approx((levels[2] + levels[3]) / 2)


@pytest.mark.parametrize(('name', 'power'), [('gaussian_noise', .08 ** 2), ('rician_noise', 2 * .08 ** 2),
                                             ('speckle_noise', .05 ** 2)])
def test_noise_has_the_moments_asked_for(name, power):
    half, severity = jnp.full_like(batch()[1], .5), jnp.full_like(batch()[2], 2)
    noisy, _ = compiled(name)(rng.example_keys(0, np.arange(len(half))), half, severity)
    assert np.mean(np.square(noisy, dtype=np.float64)) - .25 == pytest.approx(power, rel=.06)
    assert np.corrcoef(np.asarray(noisy).reshape(len(half), -1) - .5)[0, 1] == pytest.approx(0, abs=.12)


def test_contrast_and_gamma_by_hand():
    image = jnp.array([0., .25, 1.]).reshape(1, 3, 1)
    keys = rng.example_keys(0, np.arange(1))
    mean = 1.25 / 3
    np.testing.assert_allclose(CORRUPTIONS['contrast'](keys, image, jnp.array([3.]))[0, :, 0],
                               mean + .7 * (np.array([0, .25, 1]) - mean), rtol=1e-6)
    found = np.asarray(CORRUPTIONS['gamma'](keys, image, jnp.array([5.]))[0, :, 0])
    assert np.any([np.allclose(found, [0, .25 ** g, 1]) for g in (2.5, .4)])
