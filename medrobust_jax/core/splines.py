r"""Thin-plate splines: the smoothest maps that take given points exactly to others, and warps by them.

    f(p) = a_0 + A p + sum_i w_i U(|p - p_i|),     U(r) = r^2 log r,    sum_i w_i = sum_i w_i p_i = 0

Contents: `Spline`, `fit_spline`, `move_points`, `warp`.

Points are (x, y) as fractions of width and height.

Example, an image carried from its own points to the wanted ones:

    moved = warp(image, fit_spline(wanted, own), order=1)

References:
  Bookstein, Principal warps: thin-plate splines and the decomposition of deformations, TPAMI 1989.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from medrobust_jax.core.types import Array


class Spline(NamedTuple):
    """A thin-plate spline: control points `[P, 2]`, weights `[P, 2]`, and the affine part `[3, 2]` (1, x, y)."""

    control: Array
    weights: Array
    affine: Array


def fit_spline(source: Array, target: Array, *, smoothing: float = 0.) -> Spline:
    """The spline that maps points `source` `[P, 2]` exactly onto `target` `[P, 2]`.

    Args:
      source: control points, at least three that are not in line, no two of them equal.
      target: where they go.
      smoothing: >= 0, how much the fit may miss its points for the sake of less bending; 0 hits them.
        A little keeps the system solvable where points nearly coincide.

    Differentiable; made for vmap.
    """
    count = source.shape[0]
    # Centered and scaled, without which the system is badly conditioned in float32.
    center = source.mean(axis=0)
    scale = jnp.maximum(jnp.sqrt(jnp.square(source - center).sum(-1).mean()), 1e-12)
    control = (source - center) / scale
    columns = jnp.concatenate([jnp.ones((count, 1), source.dtype), control], axis=1)
    matrix = jnp.block([[_kernel(control, control) + smoothing * jnp.eye(count, dtype=source.dtype), columns],
                        [columns.T, jnp.zeros((3, 3), source.dtype)]])
    moves = jnp.concatenate([target - source, jnp.zeros((3, 2), source.dtype)])
    solution = jnp.linalg.solve(matrix, moves)
    # One round of refinement halves the digits that float32 loses.
    solution = solution + jnp.linalg.solve(matrix, moves - jnp.matmul(matrix, solution, precision='highest'))
    return Spline(jnp.concatenate([control, jnp.stack([center, jnp.full(2, scale)])]), solution[:count],
                  solution[count:])


def move_points(spline: Spline, points: Array) -> Array:
    """Where a spline takes points `[..., 2]`."""
    control, (center, scale) = spline.control[:-2], spline.control[-2:]
    relative = (points.reshape(-1, 2) - center) / scale
    bend = jnp.matmul(_kernel(relative, control), spline.weights, precision='highest')
    moved = points.reshape(-1, 2) + bend + spline.affine[0] + jnp.matmul(relative, spline.affine[1:],
                                                                         precision='highest')
    return moved.reshape(points.shape)


def warp(plane: Array, spline: Spline, *, order: int) -> Array:
    """Pulls pixels through a spline: output(p) = plane(spline(p)), edges repeated.

    To carry an image from its own shape to a wanted one, the spline goes from the wanted points to its
    own: `fit_spline(wanted, own)`.

    Args:
      plane: `[H, W]` or `[H, W, C]`.
      spline: from places of the output to places of `plane`.
      order: 1 for images, 0 (the nearest pixel) for masks.
    """
    height, width = plane.shape[:2]
    x, y = jnp.meshgrid((jnp.arange(width) + .5) / width, (jnp.arange(height) + .5) / height)
    places = move_points(spline, jnp.stack([x, y], axis=-1).astype(spline.control.dtype))
    where = [places[..., 1] * height - .5, places[..., 0] * width - .5]
    if plane.ndim == 2:
        return map_coordinates(plane, where, order=order, mode='nearest')
    return jax.vmap(lambda channel: map_coordinates(channel, where, order=order, mode='nearest'),
                    in_axes=-1, out_axes=-1)(plane)


def _kernel(a: Array, b: Array) -> Array:
    """`r^2 log r` of all distances between `[M, 2]` and `[P, 2]`; its gradient is finite at 0."""
    squared = jnp.square(a[:, None] - b[None]).sum(-1)
    return jnp.where(squared > 0, .5 * squared * jnp.log(jnp.where(squared > 0, squared, 1)), 0)
