"""How far two maps of what a model relied on are apart, in NumPy, per image.

Contents: `rank_correlation`, `top_overlap`, `center_shift`; `MEASURES`, all of them by name.

A map is non-negative, larger where the model relied more on a pixel. Its scale says nothing, and no measure here
reads it. A map without a positive value, or one that is equal everywhere, points nowhere: the measures that then
have no answer are NaN.

Example:

    moved = rank_correlation(heat_of_clean_images, heat_of_attacked_images)      # [N], 1 where nothing moved
    shared = top_overlap(heat_of_clean_images, heat_of_attacked_images)

References:
  Ghorbani, Abid, Zou, Interpretation of neural networks is fragile, AAAI 2019 (rank correlation, intersection
  of the top pixels, and distance of the centers of mass, as measures between explanations).
"""
import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

TOP_SHARE = 0.1  # of the pixels; ours (the paper takes the top 1000 of 224 x 224, 2 %)


def rank_correlation(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Spearman's rank correlation over the pixels of each pair of maps.

        cov(r, s) / (std(r) std(s)),        r, s the ranks, of equal values the mean of their ranks

    Args:
      first: `[N, H, W]`, finite and >= 0.
      second: `[N, H, W]`.

    Returns:
      `[N]` in [-1, 1]: 1 where pixels come in the same order; NaN where a map is equal everywhere.

    Raises:
      ValueError: shapes differ or are not [N, H, W], or a value is negative or not finite.
    """
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in _checked(first, second)]
    centered = [each - each.mean(axis=1, keepdims=True) for each in ranks]
    sizes = np.prod([np.sqrt((each ** 2).sum(axis=1)) for each in centered], axis=0)
    return np.where(sizes > 0, (centered[0] * centered[1]).sum(axis=1) / np.where(sizes > 0, sizes, 1), np.nan)


def top_overlap(first: ArrayLike, second: ArrayLike, *, share: float = TOP_SHARE) -> np.ndarray:
    """How much the brightest pixels of two maps have in common: intersection over union.

    The brightest are those whose value is positive and at least the k-th largest, k = share H W rounded up: with
    ties there may be more of them, in a map with fewer positive pixels fewer.

    Args:
      first: `[N, H, W]`, finite and >= 0.
      second: `[N, H, W]`.
      share: of the pixels, in (0, 1].

    Returns:
      `[N]` in [0, 1]; NaN where a map has no positive value.

    Raises:
      ValueError: as `rank_correlation`, or a share out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f'share = {share} of the pixels must lie in (0, 1]')
    one, other = (_brightest(maps.reshape(len(maps), -1), share) for maps in _checked(first, second))
    shared, either = (one & other).sum(axis=1), (one | other).sum(axis=1)
    known = one.any(axis=1) & other.any(axis=1)
    return np.where(known, shared / np.maximum(either, 1), np.nan)


def center_shift(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """How far the centers of mass of two maps are apart, as a share of the image's diagonal.

    Args:
      first: `[N, H, W]`, finite and >= 0.
      second: `[N, H, W]`.

    Returns:
      `[N]` in [0, 1); NaN where a map has no positive value.

    Raises:
      ValueError: as `rank_correlation`.
    """
    maps = _checked(first, second)
    distance = np.linalg.norm(_center(maps[0]) - _center(maps[1]), axis=-1)
    return distance / np.hypot(*maps[0].shape[1:])


MEASURES = {'rank_correlation': rank_correlation, 'top_overlap': top_overlap, 'center_shift': center_shift}


def _brightest(values: np.ndarray, share: float) -> np.ndarray:
    # 1e-9: a tenth of 30 pixels is 3 and a bit in binary, which must not become 4.
    count = max(1, int(np.ceil(share * values.shape[1] - 1e-9)))
    threshold = np.partition(values, -count, axis=1)[:, -count, None]
    return (values >= threshold) & (values > 0)


def _center(maps: np.ndarray) -> np.ndarray:
    """The centers of mass `[N, 2]`, (row, column); NaN for a map of zeros."""
    mass = maps.sum(axis=(1, 2))
    mass = np.where(mass > 0, mass, np.nan)
    height, width = maps.shape[1:]
    return np.stack([maps.sum(axis=2) @ np.arange(height) / mass, maps.sum(axis=1) @ np.arange(width) / mass], -1)


def _checked(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.asarray(first, float), np.asarray(second, float)
    if one.ndim != 3 or one.shape != other.shape or not one.size:
        raise ValueError(f'two sets of maps must be [N, H, W] each, got shapes {one.shape} and {other.shape}')
    for maps in (one, other):
        bad = ~((maps >= 0) & np.isfinite(maps)).reshape(len(maps), -1).all(axis=1)
        if bad.any():
            raise ValueError(f'a map must be finite and >= 0; row {int(bad.argmax())} is not')
    return one, other
