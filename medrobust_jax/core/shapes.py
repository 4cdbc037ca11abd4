r"""Shapes as lists of points: their modes of variation, and new shapes drawn from them.

    shape = mean + sum_k c_k mode_k,        c_k ~ U(-2, 2) sqrt(lambda_k)

with the eigenvectors and eigenvalues of the points' covariance (a point distribution model). Images
follow by the splines of `core.splines`.

Contents: `ShapeModel`, `fit_shapes`, `sample_shapes`, `align`.

Points are (x, y) as fractions of width and height.

Example:

    model = fit_shapes(points, num_modes=5)          # points [N, P, 2]
    wanted = sample_shapes(keys, model)              # [B, P, 2]

References:
  Cootes, Taylor, Cooper, Graham, Active shape models, CVIU 1995. The range of c_k and the number of
  modes, 3, 5 or 10: arXiv 2102.02885, the authors' code.
"""
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
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


def _onto(shape: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The similar copy of `shape` `[P, 2]` that is nearest to `reference` in least squares."""
    a, b = shape - shape.mean(0), reference - reference.mean(0)
    u, singular, v = np.linalg.svd(a.T @ b)
    sign = np.array([1., np.sign(np.linalg.det(u @ v))])
    return a @ (u * sign @ v) * (singular @ sign) / np.square(a).sum() + reference.mean(0)
