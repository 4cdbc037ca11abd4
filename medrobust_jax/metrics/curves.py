"""From verdicts over a grid of eps to single numbers.

Contents: `area_under_curve`, `smallest_breaking_eps`, `nested`.

Example:

    values = [proportion(row).value for row in nested(acceptable, eps)]
    area = area_under_curve(eps, values)
    margins = smallest_breaking_eps(acceptable, eps)
    median_margin = np.median(margins)
"""
import numpy as np
from numpy.typing import ArrayLike


def area_under_curve(eps: ArrayLike, values: ArrayLike) -> float:
    """The mean height of a curve over its range of eps, by the trapezoid rule.

        integral of values d eps / (eps_max - eps_min)

    A model that stays at 1 has area 1, whatever the range; ranges must be equal for areas to be
    compared.

    Args:
      eps: [E] distinct values >= 0 in any order, E >= 2.
      values: [E], any unit.

    Returns:
      The area in the unit of `values`; NaN if any value is.

    Raises:
      ValueError: fewer than two points, shapes differ, or eps not distinct, finite and >= 0.
    """
    x, y = _checked_eps(eps), np.asarray(values, float)
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(f'a curve needs two points or more, got eps {x.shape}, values {y.shape}')
    order = np.argsort(x)
    return float(np.trapezoid(y[order], x[order]) / np.ptp(x))


def nested(acceptable: ArrayLike, eps: ArrayLike) -> np.ndarray:
    """Verdicts that respect that a small ball lies within a larger one.

    An image broken at eps is broken at every larger eps of the same norm: the attack that broke it
    is allowed there too, even where a run at the larger eps missed it.

    Args:
      acceptable: [E, N] bool, verdicts at each eps.
      eps: [E] distinct values >= 0 in any order.

    Returns:
      [E, N] bool in the order of `eps`; False wherever the same or a smaller eps was.

    Raises:
      ValueError: shapes do not match, or eps not distinct, finite and >= 0.
    """
    verdicts, grid = _checked_verdicts(acceptable, eps)
    order = np.argsort(grid)
    result = np.empty_like(verdicts)
    result[order] = np.logical_and.accumulate(verdicts[order], axis=0)
    return result


def smallest_breaking_eps(acceptable: ArrayLike, eps: ArrayLike) -> np.ndarray:
    """The smallest eps of the grid at which each example was broken.

    An upper bound of the example's margin, as coarse as the grid.

    Args:
      acceptable: [E, N] bool, verdicts at each eps.
      eps: [E] distinct values >= 0 in any order; 0 stands for the clean image.

    Returns:
      [N] float, inf where no eps of the grid broke the example.

    Raises:
      ValueError: shapes do not match, or eps not distinct, finite and >= 0.
    """
    verdicts, grid = _checked_verdicts(acceptable, eps)
    return np.where(verdicts, np.inf, grid[:, None]).min(axis=0)


def _checked_eps(eps: ArrayLike) -> np.ndarray:
    grid = np.asarray(eps, float)
    if grid.ndim != 1 or not np.isfinite(grid).all() or (grid < 0).any() or not len(grid):
        raise ValueError(f'eps must be a list of finite values >= 0, got {grid}')
    if len(np.unique(grid)) < len(grid):
        raise ValueError(f'eps must not repeat, got {grid}')
    return grid


def _checked_verdicts(acceptable: ArrayLike, eps: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    grid, verdicts = _checked_eps(eps), np.asarray(acceptable, bool)
    if verdicts.ndim != 2 or len(verdicts) != len(grid):
        raise ValueError(f'acceptable must be [E = {len(grid)}, N], got shape {verdicts.shape}')
    return verdicts, grid
