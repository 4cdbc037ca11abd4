"""Polygons and the pixels inside them, in NumPy.

Contents: `inside`, `rasterize`, `spine_contour`.

A pixel belongs to a polygon when its center lies inside by the even-odd rule. Points are (x, y) as
fractions of width and height.

Example:

    masks = rasterize(points[:, spine_contour(68)], (128, 64))      # [N, 128, 64] bool
"""
import numpy as np
from numpy.typing import ArrayLike


def spine_contour(num_points: int) -> np.ndarray:
    """The order `[num_points]` in which the corners of vertebrae form one closed contour.

    Points come per vertebra, from the top down, as top left, top right, bottom left, bottom right. The
    contour goes down the left side (top left, bottom left of each vertebra in turn) and back up the
    right side (bottom right, top right of each, from the last to the first).

    Raises:
      ValueError: when there are not four points per vertebra.
    """
    if num_points < 4 or num_points % 4:
        raise ValueError(f'a spine has four points per vertebra, not {num_points} in all')
    corners = np.arange(num_points).reshape(-1, 4)
    return np.concatenate([corners[:, [0, 2]].ravel(), corners[::-1][:, [3, 1]].ravel()])


def rasterize(points: ArrayLike, size: tuple[int, int]) -> np.ndarray:
    """The masks `[N, H, W]` bool of closed polygons `[N, P, 2]`, whose points follow their contours.

    A polygon with a point that is not finite has no pixels.
    """
    height, width = size
    x, y = np.meshgrid((np.arange(width) + .5) / width, (np.arange(height) + .5) / height)
    polygons = np.asarray(points, np.float64)
    return np.stack([inside(polygon, x, y) for polygon in polygons])


def inside(polygon: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether places (x, y) lie inside a polygon `[P, 2]`: a ray to the right crosses an odd number of edges.

    Args:
      polygon: the corners in order.
      x: of the places, any shape.
      y: of the places, the same shape.

    Returns:
      bool in the places' shape.
    """
    found = np.zeros(x.shape, bool)
    if not np.isfinite(polygon).all():
        return found
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 == y1:
            continue  # a level edge is crossed by no level ray
        found ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return found
