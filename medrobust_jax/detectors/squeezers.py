"""Image filters that take away what an attack hides in: fine grey levels and fine texture.

Contents: `reduce_bit_depth`, `non_local_means`; medians are in `core.filters`.

Example:

    squeezed = non_local_means(reduce_bit_depth(images, bits=5))             # [B, *spatial, C]
"""
import functools
import itertools

import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array


def reduce_bit_depth(images: Array, *, bits: int) -> Array:
    """`round(x (2^bits - 1)) / (2^bits - 1)`, with the gradient of the identity.

    Rounding has no gradient; passing it straight through is what an attack on the detector would do
    (Athalye, Carlini, Wagner, ICML 2018, "BPDA").

    Args:
      images: `[B, *spatial, C]` in [0, 1].
      bits: 1 to 16.

    Raises:
      ValueError: for bits out of range.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f'bits = {bits} must lie in 1..16')
    levels = 2 ** bits - 1
    return images + jax.lax.stop_gradient(jnp.round(images * levels) / levels - images)


def non_local_means(images: Array, *, search: int = 13, patch: int = 3, strength: float = 2 / 255) -> Array:
    """Every pixel as the mean of those whose surroundings look alike, mirrored at the edges.

        y_p = sum_q w_pq x_q / sum_q w_pq,      w_pq = exp(-d_pq / strength^2)

    with q in a window around p, and d the mean squared difference, over channels too, of the patches around p
    and q.

    Args:
      images: `[B, H, W, C]` in [0, 1], or with another number of spatial axes.
      search: odd side of the window that q lies in.
      patch: odd side of the patches compared.
      strength: > 0, in units of [0, 1] images.

    Raises:
      ValueError: for a side that is even, or larger than the image allows, or strength <= 0.

    References: Buades, Coll, Morel, "A non-local algorithm for image denoising", CVPR 2005, section 3.
    Differs from the paper in: pixels of a patch count alike, without Gaussian weights.
    """
    shortest, reach, half = min(images.shape[1:-1]), search // 2, patch // 2
    if search < 1 or patch < 1 or not search % 2 or not patch % 2 or reach + half > shortest or strength <= 0:
        raise ValueError(f'non-local means need odd sides with search // 2 + patch // 2 <= {shortest}, the '
                         f'shortest side, and strength > 0, not search={search}, patch={patch}, '
                         f'strength={strength}')
    axes = images.ndim - 2
    padded = _mirrored(images, front=reach + half, back=reach + half)
    core = _shifted(padded, (reach,) * axes, tuple(n + 2 * half for n in images.shape[1:-1]))
    offsets = jnp.asarray(list(itertools.product(range(search), repeat=axes)))

    def add(sums: tuple[Array, Array], offset: Array) -> tuple[tuple[Array, Array], None]:
        start = (0, *offset, 0)
        there = jax.lax.dynamic_slice(padded, start, core.shape)
        distance = _box_mean(((there - core) ** 2).mean(axis=-1, keepdims=True), patch)
        weight = jnp.exp(-distance / strength ** 2)
        value = _shifted(there, (half,) * axes, images.shape[1:-1])
        return (sums[0] + weight * value, sums[1] + weight), None

    zeros = jnp.zeros_like(images)
    (total, weights), _ = jax.lax.scan(add, (zeros, zeros[..., :1]), offsets)
    return total / weights


def _mirrored(images: Array, *, front: int, back: int) -> Array:
    return jnp.pad(images, ((0, 0), *((front, back),) * (images.ndim - 2), (0, 0)), mode='symmetric')


def _shifted(padded: Array, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
    """The part of `[B, *spatial, C]` that begins at `offsets`, of spatial `sizes`."""
    index = (slice(None), *(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True)))
    return padded[index]


def _box_mean(images: Array, side: int) -> Array:
    """The mean over every whole window; spatial sides shrink by `side - 1`."""
    for axis in range(1, images.ndim - 1):
        size = images.shape[axis] - side + 1
        taps = [jax.lax.slice_in_dim(images, tap, tap + size, axis=axis) for tap in range(side)]
        images = functools.reduce(jnp.add, taps) / side
    return images
