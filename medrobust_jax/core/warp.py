r"""Rotation and translation of two-dimensional images, by bilinear interpolation.

    output(p) = image(R(-angle) (p - center - shift) + center)

Contents: `rotate_and_shift`, `FILLS`.

Example:

    turned = rotate_and_shift(images, degrees=jnp.full(8, 10.0), shift=jnp.zeros((8, 2)))
"""
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array

FILLS = {'zero': 'constant', 'edge': 'nearest'}  # as map_coordinates calls them


def rotate_and_shift(images: Array, *, degrees: Array, shift: Array, fill: str = 'zero') -> Array:
    """Rotates each image about its center, then moves it.

    Args:
      images: `[B, H, W, C]`.
      degrees: `[B]`, counterclockwise as displayed with the first row on top.
      shift: `[B, 2]` in pixels, down and to the right.
      fill: what stands where no pixel comes from: 'zero' (pixels beyond the edge count as 0 in the
        interpolation too) or 'edge' (the nearest pixel).

    Returns:
      `[B, H, W, C]`; for 0 degrees and no shift the image itself. Differentiable in all arrays.

    Raises:
      ValueError: for images that are not two-dimensional, or an unknown fill.
    """
    if images.ndim != 4:
        raise ValueError(f'rotations turn [batch, height, width, channels], not shape {images.shape}')
    if fill not in FILLS:
        did_you_mean(fill, FILLS, 'fill')
    height, width = images.shape[1:3]
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    rows, columns = jnp.meshgrid(jnp.arange(height, dtype=dtype) - (height - 1) / 2,
                                 jnp.arange(width, dtype=dtype) - (width - 1) / 2, indexing='ij')

    def warp(image: Array, angle: Array, move: Array) -> Array:
        sine, cosine = jnp.sin(jnp.deg2rad(angle)), jnp.cos(jnp.deg2rad(angle))
        row, column = rows - move[0], columns - move[1]
        source = [cosine * row + sine * column + (height - 1) / 2, cosine * column - sine * row + (width - 1) / 2]
        sample = jax.vmap(lambda plane: map_coordinates(plane, source, order=1, mode=FILLS[fill]), -1, -1)
        return sample(image.astype(dtype))

    return jax.vmap(warp)(images, degrees.astype(dtype), shift.astype(dtype)).astype(images.dtype)
