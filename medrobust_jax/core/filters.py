"""Gaussian smoothing and medians of image-shaped arrays, in any number of spatial dimensions.

Written as shifted copies: small kernels are fast that way on every backend, also inside compiled
loops, and channels never mix.

Contents: `gaussian_weights`, `smooth`, `median_filter`.

Example:

    softened = smooth(gradient, gaussian_weights(size=3, sigma=1.0))      # [B, *spatial, C]
"""
import functools
import itertools

import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.types import Array


def gaussian_weights(*, size: int = 3, sigma: float = 1.0) -> tuple[float, ...]:
    """The centered one-dimensional Gaussian `exp(-t^2 / (2 sigma^2))`, normalized to sum 1.

    Args:
      size: number of taps, odd.
      sigma: standard deviation in taps, > 0.

    Raises:
      ValueError: for an even size or sigma <= 0.
    """
    if size < 1 or size % 2 == 0 or sigma <= 0:
        raise ValueError(f'a Gaussian kernel needs an odd size and sigma > 0, not size={size}, sigma={sigma}')
    offsets = np.arange(size) - size // 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    return tuple((weights / weights.sum()).tolist())


def smooth(images: Array, weights: tuple[float, ...], *, dilation: int = 1) -> Array:
    """Separable depthwise convolution of `[B, *spatial, C]` with `weights` along every spatial axis.

    The output has the input's shape; outside the image counts as zero.

    Args:
      images: `[B, *spatial, C]`.
      weights: the taps of one axis, odd in number.
      dilation: pixels between taps, >= 1.
    """
    reach = len(weights) // 2 * dilation
    for axis in range(1, images.ndim - 1):
        padding = [(0, 0)] * images.ndim
        padding[axis] = (reach, reach)
        padded = jnp.pad(images, padding)
        size = images.shape[axis]
        taps = [weight * _window(padded, axis, tap * dilation, size) for tap, weight in enumerate(weights)]
        images = functools.reduce(jnp.add, taps)
    return images


def median_filter(images: Array, *, size: int) -> Array:
    """The median over a window of `size` pixels along every spatial axis, mirrored at the edges (b a | a b c).

    Of an even number of pixels the upper of the two in the middle; a window of even size reaches one pixel
    further up and left, as scipy.ndimage's. The gradient is the chosen pixel's.

    Args:
      images: `[B, *spatial, C]`.
      size: >= 1 and not above the shortest side.

    Raises:
      ValueError: for a size out of range.
    """
    spatial = images.shape[1:-1]
    if not 1 <= size <= min(spatial):
        raise ValueError(f'a median needs a window of 1 to {min(spatial)} pixels for images {images.shape}, '
                         f'not {size}')
    before, after = size // 2, size - 1 - size // 2
    padded = jnp.pad(images, ((0, 0), *[(before, after)] * len(spatial), (0, 0)), mode='symmetric')
    shifted = []
    for offset in itertools.product(range(size), repeat=len(spatial)):
        place = tuple(slice(start, start + side) for start, side in zip(offset, spatial, strict=True))
        shifted.append(padded[(slice(None), *place)])
    return jnp.sort(jnp.stack(shifted, axis=-1), axis=-1)[..., len(shifted) // 2]


def _window(padded: Array, axis: int, start: int, size: int) -> Array:
    index = [slice(None)] * padded.ndim
    index[axis] = slice(start, start + size)
    return padded[tuple(index)]
