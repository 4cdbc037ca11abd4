"""Landmark detection: the places of P named points in an image.

Contents: `landmarks`.

Example:

    task = landmarks(68, size=(128, 64), unit='percent', cobb_angles=True)
    losses = task.loss(maps, points)            # maps [B, H, W, 204], points [B, 68, 2] -> [B]

References:
  Ma et al., arXiv 2206.01736, and the authors' code, for what is marked [code].
"""
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.heatmaps import decode, radius_of, split_maps
from medrobust_jax.core.types import Array, Outputs, Targets, Task
from medrobust_jax.losses.landmarks import head_divergence, landmark_loss
from medrobust_jax.metrics import landmarks as quality_of

_AT_ONCE = 16  # images whose maps are decoded together, which bounds memory


def landmarks(num_points: int, *, size: Sequence[int], threshold: tuple[float, ...] = (-1.,), z: float = 3.,
              radius: float = .05, unit: str = 'px', pixel_size: Sequence[float] | None = None,
              radii: Sequence[float] | None = None, cobb_angles: bool = False) -> Task:
    """The task of finding `num_points` landmarks.

    Outputs are maps `[B, H, W, 3 num_points]`: heat logits, offsets in x, offsets in y, see
    `core.heatmaps`; targets are 'points' `[B, num_points, 2]`, (x, y) as fractions of width and
    height. Loss: L1 of the offsets inside the disks + 2 BCE of the heat [code]. Quality: minus the
    loss; criterion: quality >= threshold. Divergence: KL of each head's flattened softmax [code].

    Args:
      num_points: P >= 1.
      size: (height, width) of the images in pixels.
      threshold: the smallest acceptable quality; -1 is ours, for use before calibration: about the
        loss of offsets that are off by half the disk's radius and heat that is mostly right.
      z: how many robust standard deviations above the robust mean a loss is acceptable, when the
        threshold is calibrated; 2 or 3 [code].
      radius: of the disks, as a fraction of the maps' height; .05 is ours.
      unit: of the metrics: 'px', 'percent' (of the height) or 'mm'.
      pixel_size: (height, width) of a pixel in mm, for 'mm' alone.
      radii: of the detection rates, in the unit; default 2, 2.5, 3, 4 in mm and px, 1 to 4 in percent.
      cobb_angles: whether the points are the corners of vertebrae (`metrics.cobb`); needs square
        pixels in the unit.

    Returns:
      The task. `metrics` takes maps or points: maps of many landmarks are large, so callers may hand
      on what `predict` says of each batch.

    Raises:
      ValueError: for values out of range.
    """
    if num_points < 1 or len(threshold) != 1 or not 0 < radius < 1 or z <= 0:
        raise ValueError(f'landmarks needs num_points >= 1, one threshold, radius in (0, 1) and z > 0, not '
                         f'{num_points}, {threshold}, {radius} and {z}')
    if cobb_angles and (num_points % 4 or num_points < 8):
        raise ValueError(f'cobb_angles needs four landmarks per vertebra, not {num_points} in all')
    extent = quality_of.extent_of(size, unit, pixel_size)
    loss = partial(landmark_loss, radius_fraction=radius)
    judge = partial(quality_of.landmark_metrics, extent=extent, cobb_angles=cobb_angles,
                    radii=quality_of.RADII[unit] if radii is None else radii)

    def quality(outputs: Outputs, targets: Targets) -> Array:
        return -loss(outputs, targets)

    def acceptable(outputs: Outputs, targets: Targets) -> Array:
        return (quality(outputs, targets) >= threshold[0]) & jnp.isfinite(outputs).all(axis=(1, 2, 3))

    def predict(outputs: Outputs) -> Array:
        return decode(*split_maps(outputs), radius=radius_of(outputs.shape[1], radius))

    def metrics(outputs: Outputs, targets: Targets, groups: np.ndarray | None = None) -> dict[str, Any]:
        points = outputs if np.ndim(outputs) == 3 else _in_parts(jax.jit(predict), outputs)
        return judge(points, targets, groups)

    return Task(name='landmarks', num_outputs=3 * num_points, target_names=('points',),
                targets=lambda batch: batch['points'], loss=loss, acceptable=acceptable,
                divergence=head_divergence, predict=predict, metrics=metrics,
                verdict_metrics=lambda predictions, targets, groups=None: judge(predictions, targets, groups),
                check_targets=partial(quality_of.check_points, num_points=num_points),
                quality=quality, threshold_of=partial(robust_threshold, z=z))


def robust_threshold(qualities: np.ndarray, *, z: float) -> tuple[float, ...]:
    """`median - z * 1.4826 MAD` of qualities `[N]`: the paper's robust location and scale.

    1.4826 makes the median absolute deviation the standard deviation of a normal distribution.
    """
    values = np.asarray(qualities, np.float64).reshape(-1)
    middle = np.median(values)
    return (float(middle - z * 1.4826 * np.median(np.abs(values - middle))),)


def _in_parts(predict: Any, outputs: Outputs) -> np.ndarray:
    return np.concatenate([np.asarray(predict(outputs[start:start + _AT_ONCE]))
                           for start in range(0, len(outputs), _AT_ONCE)])
