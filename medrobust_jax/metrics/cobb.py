"""Cobb angles of a spine from the corners of its vertebrae, in NumPy.

Contents: `cobb_angles`, `angle_errors`, `CORNERS`.

A vertebra's line runs from the middle of its left side to the middle of its right side. The largest
angle between two such lines, of the vertebrae `upper` and `lower`, is the main curve's. Beside it,
the challenge reports

* where the spine bends to one side only: the angles between the first vertebra and `upper`, and
  between `lower` and the last one;
* where it is S-shaped and the main curve lies in the upper half of the image: the largest angles
  that `upper` makes with those above it, and `lower` with those below it;
* where it is S-shaped with the main curve in the lower half: the largest angle that `upper` makes
  with those above it, and the largest that the vertebra found there makes with those above itself.

A spine is S-shaped where its midline crosses the chord between its ends. The image's half is decided
by the lower end plates of `upper` and `lower`.

Example:

    cobb_angles(points * [width, height], height)        # [N, 3] degrees: main, upper, lower

References:
  The AASCE 2019 challenge (Wang et al., Medical Image Analysis 2021) and its data, whose published
  angles these are: all three, of all 609 images, agree within .02 degrees.
"""
import numpy as np
from numpy.typing import ArrayLike

CORNERS = ('top left', 'top right', 'bottom left', 'bottom right')  # of each vertebra, from the top down


def cobb_angles(points: ArrayLike, height: float) -> np.ndarray:
    """The three angles of each spine.

    Args:
      points: `[N, 4 V, 2]` (x, y) in any unit with square pixels; per vertebra the `CORNERS`.
      height: of the image in that unit.

    Returns:
      `[N, 3]` degrees: the main curve's, the upper and the lower one. NaN where a point is not finite.

    Raises:
      ValueError: when the points are not four per vertebra, with two vertebrae at least.
    """
    array = np.asarray(points, np.float64)
    if array.ndim != 3 or array.shape[1] % 4 or array.shape[1] < 8 or array.shape[2] != 2:
        raise ValueError(f'Cobb angles need points [N, 4 * vertebrae, 2], not {array.shape}')
    return np.array([_angles(spine, height) for spine in array.reshape(len(array), -1, 4, 2)]).reshape(-1, 3)


def angle_errors(predicted: ArrayLike, true: ArrayLike, extent: tuple[float, float]) -> dict[str, np.ndarray]:
    """How far the angles from predicted points are off those from true points.

    Args:
      predicted: `[N, 4 V, 2]` fractions of width and height.
      true: `[N, 4 V, 2]` fractions.
      extent: the image's (height, width) in one unit; images stretched in one direction have no angles.

    Returns:
      Per image `[N]`: 'cobb_main_error', |main - main'| in degrees; 'cobb_mean_error', the mean over
      the three; 'cobb_smape' in percent, 100 sum |a - b| / sum (a + b) over the three angles. A spine
      with points that are not finite is 180 degrees and 100 % off.
    """
    scale = np.array([extent[1], extent[0]])
    a, b = (cobb_angles(np.asarray(points) * scale, extent[0]) for points in (predicted, true))
    error = np.nan_to_num(np.abs(a - b), nan=180.)
    total = (a + b).sum(axis=1)
    smape = 100 * np.abs(a - b).sum(axis=1) / np.where(total > 0, total, 1)
    return {'cobb_main_error': error[:, 0], 'cobb_mean_error': error.mean(axis=1),
            'cobb_smape': np.nan_to_num(smape, nan=100.)}


def _angles(spine: np.ndarray, height: float) -> tuple[float, float, float]:
    """The angles of one spine, `[V, 4, 2]`."""
    if not np.isfinite(spine).all():
        return np.nan, np.nan, np.nan
    lines = (spine[:, 1] + spine[:, 3] - spine[:, 0] - spine[:, 2]) / 2
    length = np.linalg.norm(lines, axis=1, keepdims=True)
    lines = lines / np.where(length > 0, length, 1)
    between = np.degrees(np.arccos(np.clip(lines @ lines.T, -1, 1)))
    # Rounding leaves a vertebra a tiny angle with itself.
    np.fill_diagonal(between, 0)
    upper, lower = sorted(np.unravel_index(between.argmax(), between.shape))
    main = between[upper, lower]
    plates = ((spine[:, [0, 2]] + spine[:, [1, 3]]) / 2).reshape(-1, 2)  # their middles, two per vertebra
    if not _is_s_shaped(plates):
        return main, between[0, upper], between[-1, lower]
    above = between[upper, :upper + 1]
    if plates[2 * upper + 1, 1] + plates[2 * lower + 1, 1] < height:
        return main, above.max(), between[lower, lower:].max()
    top = int(above.argmax())
    return main, above.max(), between[top, :top + 1].max()


def _is_s_shaped(plates: np.ndarray) -> bool:
    """Whether the midline `[M, 2]` lies on both sides of the chord between its ends.

    The tolerance is the challenge's, and so is the verdict on a chord that is exactly vertical.
    """
    with np.errstate(divide='ignore', invalid='ignore'):
        along = (plates[:-2] - plates[-1]) / (plates[0] - plates[-1])
        side = along[:, 1] - along[:, 0]
        return not abs(side.sum()**2 - np.abs(side).sum()**2) < 1e-4
