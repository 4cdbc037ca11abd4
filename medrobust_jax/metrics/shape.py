"""Quality of shapes: distances of boundary points, and the overlap of what they enclose, in NumPy.

Contents: `dice`, `shape_values` (per image), `shape_metrics` (with intervals).

Example:

    estimates = shape_metrics(predicted, true, patients, extent=(128, 64), contour=spine_contour(68))
    print(estimates['mean_point_distance'].value, estimates['polygon_dice'].value)
"""
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.core.polygons import rasterize
from medrobust_jax.metrics.cobb import angle_errors
from medrobust_jax.metrics.intervals import Estimate, mean_of
from medrobust_jax.metrics.landmarks import radial_errors


def dice(predicted: ArrayLike, true: ArrayLike) -> np.ndarray:
    """`2 |A and B| / (|A| + |B|)` of masks `[N, H, W]`, `[N]`; 1 where both are empty."""
    a, b = (np.asarray(mask).astype(bool).reshape(len(np.asarray(mask)), -1) for mask in (predicted, true))
    total = a.sum(1) + b.sum(1)
    return np.where(total > 0, 2 * (a & b).sum(1) / np.maximum(total, 1), 1.)


def shape_values(predicted: Mapping[str, Any], true: Mapping[str, Any], *, extent: tuple[float, float],
                 contour: np.ndarray | None = None, cobb_angles: bool = False) -> dict[str, np.ndarray]:
    """One number per image and quality, `[N]` each.

    Args:
      predicted: 'points' `[N, P, 2]` fractions, 'mask' `[N, H, W]`, logits or 0 and 1: above 0 is inside.
      true: 'points' `[N, P, 2]` and 'segmentation' `[N, H, W]`: above 0 is inside.
      extent: the image's (height, width) in the unit of distances.
      contour: `[P]`, the order in which the points form a contour; None for their own.
      cobb_angles: whether the points are corners of vertebrae, see `metrics.cobb`.

    Returns:
      'mean_point_distance' in the extent's unit; 'polygon_dice', of the pixels that the points enclose
      with the true mask; 'mask_dice', of the mask; with angles what `angle_errors` computes.
    """
    points, mask = np.asarray(predicted['points'], np.float64), np.asarray(predicted['mask'])
    inside = np.asarray(true['segmentation']) > 0
    polygon = rasterize(points if contour is None else points[:, contour], inside.shape[1:])
    values = {'mean_point_distance': radial_errors(points, true['points'], extent).mean(axis=1),
              'polygon_dice': dice(polygon, inside), 'mask_dice': dice(mask > 0, inside)}
    return values | angle_errors(points, true['points'], extent) if cobb_angles else values


def shape_metrics(predicted: Mapping[str, Any], true: Mapping[str, Any], groups: ArrayLike | None = None, *,
                  extent: tuple[float, float], contour: np.ndarray | None = None,
                  cobb_angles: bool = False) -> dict[str, Estimate]:
    """The means of `shape_values` with intervals over images, or over patients `groups` `[N]`."""
    values = shape_values(predicted, true, extent=extent, contour=contour, cobb_angles=cobb_angles)
    return {name: mean_of(value, groups) for name, value in values.items()}
