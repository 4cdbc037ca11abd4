"""JPEG: against Pillow's files, and its gradients."""
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from medrobust_jax.core.jpeg import jpeg, quantization_tables

compress = jax.jit(jpeg, static_argnames=('subsampling', 'rounding'))


def scene(shape, seed=0):
    """Smooth waves, an edge and noise, uint8 `[H, W, C]`: something at every frequency."""
    height, width, channels = shape
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 32
    planes = [np.sin(draws.uniform(2, 9) * x + 6 * draws.uniform()) * np.cos(draws.uniform(2, 9) * y)
              + (x + y > .9) + draws.normal(scale=.1, size=(height, width)) for _ in range(channels)]
    image = np.stack(planes, axis=-1)
    return np.round(255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)


def through_pillow(image, quality, subsampling):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, 'JPEG', quality=quality,
                                          subsampling='4:2:0' if subsampling else '4:4:4')
    opened = Image.open(file)
    return np.asarray(opened).reshape(image.shape).astype(float), opened.quantization


@pytest.mark.parametrize(('shape', 'subsampling'), [((32, 32, 1), True), ((29, 43, 1), True), ((32, 48, 3), True),
                                                    ((37, 21, 3), True), ((37, 21, 3), False)])
def test_agrees_with_pillow(shape, subsampling):
    qualities = [95, 75, 50, 30, 15, 7]
    images = np.stack([scene(shape, seed) for seed in range(len(qualities))])
    ours = 255 * np.asarray(compress(images / np.float32(255), jnp.asarray(qualities, jnp.float32),
                                     subsampling=subsampling))
    np.testing.assert_allclose(ours, np.round(ours), atol=1e-3)
    for image, mine, quality in zip(images, ours, qualities, strict=True):
        theirs, _ = through_pillow(image, quality, subsampling)
        error, effect = np.abs(mine - theirs), np.abs(image - theirs).mean()
        # libjpeg's cosines are in fixed point: a frequency halfway between two steps may go either way.
        assert error.mean() < min(.5, .2 * effect)
        assert np.mean(error < 1.5) > .9


def test_tables_are_those_in_pillows_files():
    qualities = np.arange(1, 101)
    luminance, chrominance = quantization_tables(jnp.asarray(qualities, jnp.float32))
    between = quantization_tables(jnp.asarray(qualities + np.tile([1e-5, -1e-5], 50), jnp.float32))
    for row, quality in enumerate(qualities.tolist()):
        _, tables = through_pillow(scene((8, 8, 3)), quality, True)
        np.testing.assert_array_equal(luminance[row].ravel(), tables[0])
        np.testing.assert_array_equal(chrominance[row].ravel(), tables[1])
        np.testing.assert_array_equal(between[0][row].ravel(), tables[0])  # as interpolation rounds


def test_quality_and_channels_are_per_image():
    images = jnp.asarray(np.stack([scene((24, 24, 2), seed) for seed in range(3)]) / np.float32(255))
    together = compress(images, jnp.array([80., 40., 10.]))
    alone = compress(images[1:2, :, :, 1:], jnp.array([40.]))
    np.testing.assert_allclose(together[1, :, :, 1], alone[0, :, :, 0], atol=1e-6)


@pytest.mark.parametrize('channels', [1, 3])
def test_gradients(channels):
    image = jnp.asarray(scene((16, 24, channels))[None] / np.float32(255)) * .6 + .2  # away from the box
    quality = jnp.array([30.])
    weights = jnp.asarray(np.random.default_rng(1).normal(size=image.shape).astype(np.float32))

    def slope(rounding):
        return jax.jit(jax.grad(lambda x: jnp.sum(weights * jpeg(x, quality, rounding=rounding))))(image)

    through = slope('straight_through')
    # With roundings passed through, what is left is linear: grey is the identity.
    if channels == 1:
        np.testing.assert_allclose(through, weights, atol=1e-4)
    assert jnp.linalg.norm(through) > .3 * jnp.linalg.norm(weights)
    soft = slope('soft')
    assert np.all(np.isfinite(soft))
    assert np.any(soft != 0)
    near = compress(image, quality, rounding='soft')
    assert np.abs(near - image).mean() < np.abs(compress(image, quality) - image).mean() + .01


def test_refusals():
    with pytest.raises(ValueError, match='height, width'):
        jpeg(jnp.zeros((1, 8, 8, 8, 1)), jnp.ones(1))
    with pytest.raises(ValueError, match="did you mean 'soft'"):
        jpeg(jnp.zeros((1, 8, 8, 1)), jnp.ones(1), rounding='sofd')
