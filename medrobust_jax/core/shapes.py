r"""Shapes as lists of points: their modes of variation, and warps of images from one shape to another.

    shape = mean + sum_k c_k mode_k,        c_k ~ U(-2, 2) sqrt(lambda_k)

with the eigenvectors and eigenvalues of the points' covariance (a point distribution model), and the
thin-plate spline

    f(p) = a_0 + A p + sum_i w_i U(|p - p_i|),     U(r) = r^2 log r,    sum_i w_i = sum_i w_i p_i = 0

which maps given points p_i exactly onto given others with the least bending.

Contents: `ShapeModel`, `fit_shapes`, `sample_shapes`, `align`; `Spline`, `fit_spline`, `move_points`,
`warp`.

Points are (x, y) as fractions of width and height throughout.

Example:

    model = fit_shapes(points, num_modes=5)                                     # points [N, P, 2]
    wanted = points[:8] + sample_shapes(keys, model) - model.mean               # [8, P, 2]
    images = jax.vmap(lambda image, old, new: warp(image, fit_spline(new, old), order=1))(
        images[:8], points[:8], wanted)

References:
  Cootes, Taylor, Cooper, Graham, Active shape models, CVIU 1995; Bookstein, Principal warps, TPAMI
  1989. The range of c_k and the number of modes, 3, 5 or 10: arXiv 2102.02885, the authors' code.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from numpy.typing import ArrayLike

from medrobust_jax.core import rng
from medrobust_jax.core.types import Array


class ShapeModel(NamedTuple):
    """The mean shape `[P, 2]`, K orthonormal modes `[K, P, 2]`, and their variances `[K]`, falling."""

    mean: Array
    modes: Array
    variances: Array


def fit_shapes(points: ArrayLike, *, num_modes: int) -> ShapeModel:
    """The principal components of shapes `[N, P, 2]`.

    Args:
      points: as they lie in their images; `align` first where place and size shall not count.
      num_modes: K, from 1 to min(N - 1, 2 P).

    Raises:
      ValueError: for a number of modes out of range, or points that are not finite.
    """
    shapes = np.asarray(points, np.float64)
    if shapes.ndim != 3 or shapes.shape[2] != 2 or not np.isfinite(shapes).all():
        raise ValueError(f'shapes must be finite points [N, P, 2], not {shapes.shape}')
    count, most = len(shapes), min(len(shapes) - 1, 2 * shapes.shape[1])
    if not 1 <= num_modes <= most:
        raise ValueError(f'num_modes = {num_modes} must lie in 1..{most} for {count} shapes of '
                         f'{shapes.shape[1]} points')
    mean = shapes.mean(axis=0)
    _, singular, modes = np.linalg.svd((shapes - mean).reshape(count, -1), full_matrices=False)
    modes, variances = modes[:num_modes].reshape(num_modes, -1, 2), singular[:num_modes] ** 2 / (count - 1)
    return ShapeModel(*(jnp.asarray(part, jnp.float32) for part in (mean, modes, variances)))


def sample_shapes(keys: Array, model: ShapeModel, *, spread: float = 2.) -> Array:
    """One shape per key, `[B, P, 2]`: each mode by U(-spread, spread) of its standard deviation."""
    draws = rng.uniform(keys, model.variances.shape, -spread, spread)
    # Element by element: matrix products of few numbers are the least exact on some devices.
    return model.mean + ((draws * jnp.sqrt(model.variances))[:, :, None, None] * model.modes).sum(axis=1)


def align(points: ArrayLike, reference: ArrayLike | None = None, *, num_rounds: int = 5) -> np.ndarray:
    """Procrustes alignment: shapes `[N, P, 2]` moved, turned and scaled onto a common one.

    Args:
      points: the shapes.
      reference: `[P, 2]`, or None for their own mean, found in `num_rounds` rounds that begin with the first
        shape, whose place, size and direction it keeps.
      num_rounds: >= 1.

    References: Gower, Psychometrika 1975; the turn is Kabsch's, without reflections.
    """
    shapes = np.asarray(points, np.float64)
    onto = shapes[0] if reference is None else np.asarray(reference, np.float64)
    for _ in range(num_rounds if reference is None else 1):
        aligned = np.stack([_onto(shape, onto) for shape in shapes])
        if reference is None:
            onto = _onto(aligned.mean(axis=0), shapes[0])
    return aligned


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


def _onto(shape: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The similar copy of `shape` `[P, 2]` that is nearest to `reference` in least squares."""
    a, b = shape - shape.mean(0), reference - reference.mean(0)
    u, singular, v = np.linalg.svd(a.T @ b)
    sign = np.array([1., np.sign(np.linalg.det(u @ v))])
    return a @ (u * sign @ v) * (singular @ sign) / np.square(a).sum() + reference.mean(0)
