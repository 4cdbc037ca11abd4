"""Quality of landmarks: radial errors, detection rates, and Cobb angles, in NumPy.

Contents: `extent_of`, `radial_errors`, `landmark_metrics`, `check_points`.
Angles are in `metrics/cobb.py`.

Points are `[N, P, 2]`, (x, y) as fractions of width and height; the image's extent turns them into
lengths.

Example:

    extent = extent_of((128, 64), 'percent')                       # (100, 50)
    estimates = landmark_metrics(predicted, true, patients, extent=extent, radii=(1, 2, 3))
    print(estimates['mean_radial_error'].value, estimates['detected_within_2'].value)
"""
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.metrics.cobb import angle_errors
from medrobust_jax.metrics.intervals import Estimate, mean_of

UNITS = ('px', 'percent', 'mm')
# Of the ISBI-2015 cephalometric challenge, in mm; the others are ours.
RADII = {'mm': (2., 2.5, 3., 4.), 'px': (2., 2.5, 3., 4.), 'percent': (1., 2., 3., 4.)}


def extent_of(size: Sequence[int], unit: str, pixel_size: Sequence[float] | None = None) -> tuple[float, float]:
    """The (height, width) of an image of `size` pixels in a unit.

    Args:
      size: (height, width) in pixels.
      unit: 'px', 'percent' (of the height) or 'mm'.
      pixel_size: (height, width) of a pixel in mm, for 'mm' alone.

    Raises:
      ValueError: for an unknown unit, 'mm' without a pixel size, or one that is not two positive lengths.
    """
    if unit not in UNITS:
        did_you_mean(unit, UNITS, 'unit')
    if (unit == 'mm') != (pixel_size is not None):
        raise ValueError(f"unit '{unit}' and pixel_size = {pixel_size}: a pixel's (height, width) in mm belongs "
                         "to unit='mm', and to it alone")
    height, width = (float(side) for side in size)
    if pixel_size is not None:
        if np.shape(pixel_size) != (2,) or not all(0 < side < np.inf for side in pixel_size):
            raise ValueError(f'pixel_size = {pixel_size} must be (height, width) of a pixel in mm, both positive')
        return height * pixel_size[0], width * pixel_size[1]
    return (height, width) if unit == 'px' else (100., 100 * width / height)


def radial_errors(predicted: ArrayLike, true: ArrayLike, extent: tuple[float, float]) -> np.ndarray:
    """The distance of each landmark from its place, `[N, P]`, in the extent's unit.

    A prediction that is not finite counts as the image's diagonal away, and none as farther: a mean
    error stays defined whatever an attacked network says.
    """
    scale = np.array([extent[1], extent[0]])
    apart = (np.asarray(predicted, np.float64) - np.asarray(true, np.float64)) * scale
    diagonal = float(np.hypot(*extent))
    return np.minimum(np.nan_to_num(np.hypot(apart[..., 0], apart[..., 1]), nan=diagonal), diagonal)


def landmark_metrics(predicted: ArrayLike, true: ArrayLike, groups: ArrayLike | None = None, *,
                     extent: tuple[float, float], radii: Sequence[float],
                     cobb_angles: bool = False) -> dict[str, Estimate]:
    """Mean radial error and successful detection rates, with intervals over images or patients.

    Args:
      predicted: `[N, P, 2]` fractions.
      true: `[N, P, 2]` fractions.
      groups: `[N]` patient ids, or None.
      extent: (height, width) of the image, see `extent_of`.
      radii: of the detection rates, in the extent's unit.
      cobb_angles: whether the points are spine landmarks whose angles shall be judged too; lengths
        along and across the image must be in one proportion, see `metrics.cobb.angle_errors`.

    Returns:
      'mean_radial_error', 'detected_within_<radius>' for each radius, in [0, 1], and with angles
      what `angle_errors` computes.
    """
    errors = radial_errors(predicted, true, extent)
    values = {'mean_radial_error': errors.mean(axis=1)}
    for radius in radii:
        values[f'detected_within_{radius:g}'] = (errors <= radius).mean(axis=1)
    if cobb_angles:
        values |= angle_errors(predicted, true, extent)
    return {name: mean_of(value, groups) for name, value in values.items()}


def check_points(points: Any, num_points: int, *, what: str = 'points', first_index: int = 0) -> None:
    """Raises unless `points` are `[N, num_points, 2]`, finite and inside the image.

    Raises:
      ValueError: for the wrong shape, or the first row that breaks the contract.
    """
    array = np.asarray(points)
    if array.ndim != 3 or array.shape[1:] != (num_points, 2):
        raise ValueError(f'{what}: shape {array.shape} is not [N, {num_points}, 2]; set num_points to the '
                         "data's number of landmarks")
    bad = np.argwhere(~((array >= 0) & (array <= 1)))
    if len(bad):
        row, point, axis = bad[0]
        raise ValueError(f'{what}: row {first_index + row}, point {point} has {"xy"[axis]} = '
                         f'{array[row, point, axis]:.6g}, outside the image (fractions in [0, 1]; '
                         f'{len(np.unique(bad[:, 0]))} such rows)')
