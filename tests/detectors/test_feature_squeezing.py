"""Squeezers against SciPy and brute force; the score by hand."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, special

from medrobust_jax.core.filters import median_filter
from medrobust_jax.detectors.feature_squeezing import feature_squeezing
from medrobust_jax.detectors.squeezers import non_local_means, reduce_bit_depth

IMAGES = np.random.default_rng(0).random((2, 7, 9, 3)).astype(np.float32)
VOLUMES = np.random.default_rng(1).random((2, 4, 5, 6, 1)).astype(np.float32)


@pytest.mark.parametrize('images', [IMAGES, VOLUMES], ids=['planes', 'volumes'])
@pytest.mark.parametrize('size', [1, 2, 3])
def test_median_is_scipys(images, size):
    window = (1, *(size,) * (images.ndim - 2), 1)
    expected = ndimage.median_filter(images, window, mode='reflect')
    np.testing.assert_array_equal(jax.jit(lambda x: median_filter(x, size=size))(images), expected)


def test_non_local_means_are_those_of_brute_force():
    strength, reach, half = .4, 2, 1
    padded = np.pad(IMAGES.astype(np.float64), ((0, 0), (3, 3), (3, 3), (0, 0)), mode='symmetric')

    def patch(b, row, column):
        return padded[b, row + 3 - half:row + 4 + half, column + 3 - half:column + 4 + half]

    expected = np.zeros(IMAGES.shape)
    for b, row, column in itertools.product(range(2), range(7), range(9)):
        total = 0.
        for dy, dx in itertools.product(range(-reach, reach + 1), repeat=2):
            there = patch(b, row + dy, column + dx)
            weight = np.exp(-((there - patch(b, row, column)) ** 2).mean() / strength ** 2)
            expected[b, row, column] += weight * there[half, half]
            total += weight
        expected[b, row, column] /= total
    got = jax.jit(lambda x: non_local_means(x, search=5, patch=3, strength=strength))(IMAGES)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_non_local_means_keep_edges_and_remove_noise():
    clean = np.repeat(np.float32([.2, .8]), 8)[None, None, :, None] * np.ones((1, 16, 1, 1), np.float32)
    noisy = clean + np.random.default_rng(2).normal(0, .02, clean.shape).astype(np.float32)
    got = jax.jit(lambda x: non_local_means(x, search=7, strength=.05))(noisy)
    assert np.abs(got - clean).mean() < .5 * np.abs(noisy - clean).mean()


def test_bits_round_to_levels_and_pass_gradients_through():
    x = jnp.linspace(0, 1, 11)[None, :, None]
    np.testing.assert_allclose(reduce_bit_depth(x, bits=1).ravel(), np.round(np.linspace(0, 1, 11)), atol=1e-7)
    assert len(np.unique(np.round(reduce_bit_depth(jnp.linspace(0, 1, 999)[None, :, None], bits=3), 4))) == 8
    np.testing.assert_array_equal(jax.grad(lambda x: reduce_bit_depth(x, bits=3).sum())(x), np.ones_like(x))


def test_score_is_minus_the_largest_distance():
    weights = np.random.default_rng(3).normal(size=(7 * 9 * 3, 4)).astype(np.float32)
    forward = lambda images: images.reshape(2, -1) @ weights  # noqa: E731
    softmax = lambda images: special.softmax(forward(np.asarray(images)), axis=1)  # noqa: E731
    detector = feature_squeezing(forward=forward, bits=2, median=3, search=None)
    scores = detector.score(detector.fit({}, None, jax.random.key(0)),
                            {'logits': forward(IMAGES), 'images': IMAGES})
    distances = [np.abs(softmax(q) - softmax(IMAGES)).sum(1)
                 for q in (np.round(IMAGES * 3) / 3, ndimage.median_filter(IMAGES, (1, 3, 3, 1)))]
    np.testing.assert_allclose(scores, -np.max(distances, axis=0), rtol=1e-4)


@pytest.mark.parametrize(('call', 'message'), [
    (lambda: feature_squeezing(forward=len, bits=None, median=None, search=None), 'without a squeezer'),
    (lambda: reduce_bit_depth(IMAGES, bits=0), 'bits = 0 must lie in 1..16'),
    (lambda: median_filter(IMAGES, size=8), 'a median needs a window of 1 to 7 pixels'),
    (lambda: non_local_means(IMAGES, search=4), 'odd sides'),
    (lambda: non_local_means(IMAGES, search=15), r'search // 2 .* <= 7'),
])
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
