"""Gaussian smoothing and medians against scipy.ndimage."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from medrobust_jax.core.filters import gaussian_weights, median_filter, smooth


@pytest.mark.parametrize('spatial', [(9,), (7, 10), (5, 6, 4)])
@pytest.mark.parametrize(('size', 'dilation'), [(1, 1), (3, 1), (3, 2), (5, 1), (7, 3)])
def test_is_a_depthwise_convolution(spatial, size, dilation):
    images = np.random.default_rng(0).normal(size=(2, *spatial, 3)).astype(np.float32)
    weights = gaussian_weights(size=size, sigma=1.3)
    line = np.zeros((size - 1) * dilation + 1)
    line[::dilation] = weights
    kernel = line
    for _ in spatial[1:]:
        kernel = np.multiply.outer(kernel, line)
    truth = np.stack([np.stack([ndimage.convolve(image[..., c], kernel, mode='constant') for c in range(3)], -1)
                      for image in images.astype(np.float64)])
    np.testing.assert_allclose(smooth(jnp.asarray(images), weights, dilation=dilation), truth, atol=2e-6)


def test_weights_are_scipys_gaussian():
    impulse = np.zeros(7)
    impulse[3] = 1
    truth = ndimage.gaussian_filter1d(impulse, 1.7, truncate=3 / 1.7, mode='constant')
    np.testing.assert_allclose(gaussian_weights(size=7, sigma=1.7), truth, rtol=1e-12)
    assert abs(sum(gaussian_weights(size=15, sigma=3.0)) - 1) < 1e-12


def test_constants_stay_inside_and_fade_at_the_border():
    out = np.asarray(smooth(jnp.ones((1, 8, 8, 1)), gaussian_weights()))[0, ..., 0]
    np.testing.assert_allclose(out[1:-1, 1:-1], 1, rtol=1e-6)
    assert out[0, 0] < out[0, 3] < 1


@pytest.mark.parametrize(('size', 'sigma'), [(2, 1.0), (0, 1.0), (3, 0.0), (3, -1.0)])
def test_refusals(size, sigma):
    with pytest.raises(ValueError, match='odd size and sigma > 0'):
        gaussian_weights(size=size, sigma=sigma)


@pytest.mark.parametrize('spatial', [(9,), (7, 10), (5, 6, 4)])
@pytest.mark.parametrize('size', [1, 2, 3, 4])
def test_median_is_scipys(spatial, size):
    images = np.random.default_rng(0).normal(size=(2, *spatial, 3)).astype(np.float32)
    truth = ndimage.median_filter(images, size=(1, *[size] * len(spatial), 1), mode='reflect')
    np.testing.assert_array_equal(median_filter(jnp.asarray(images), size=size), truth)


def test_median_passes_the_gradient_to_the_pixel_it_chose():
    image = jnp.array([.1, .9, .5, .2, .7])[None, :, None]
    gradient = jax.grad(lambda x: median_filter(x, size=3)[0, 2, 0])(image)  # of .9, .5, .2
    np.testing.assert_array_equal(gradient[0, :, 0], [0, 0, 1, 0, 0])


@pytest.mark.parametrize('size', [0, 4])
def test_median_refuses_windows_that_do_not_fit(size):
    with pytest.raises(ValueError, match=f'window of 1 to 3 pixels.*not {size}'):
        median_filter(jnp.zeros((1, 3, 5, 1)), size=size)
