"""Gaussian smoothing of image-shaped arrays, in any number of spatial dimensions.

Written as shifted sums, one axis at a time: small kernels are fast that way on every backend, also
inside compiled loops, and channels never mix.

Contents: `gaussian_weights`, `smooth`.

Example:

    softened = smooth(gradient, gaussian_weights(size=3, sigma=1.0))      # [B, *spatial, C]
"""
import functools

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


def _window(padded: Array, axis: int, start: int, size: int) -> Array:
    index = [slice(None)] * padded.ndim
    index[axis] = slice(start, start + size)
    return padded[tuple(index)]
