"""Shape regression: the points of a boundary as numbers, and the mask that they enclose.

Contents: `shape`, `CONTOURS`.

Example:

    task = shape(68, size=(128, 64), contour='spine', cobb_angles=True)
    losses = task.loss(outputs, {'points': points, 'segmentation': masks})       # [B]

References:
  arXiv 2102.02885 and its authors' code, for what is marked [code].
"""
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.polygons import spine_contour
from medrobust_jax.core.types import Array, Outputs, Targets, Task
from medrobust_jax.losses.shape import shape_divergence, shape_loss
from medrobust_jax.metrics.landmarks import check_points
from medrobust_jax.metrics.shape import shape_metrics
from medrobust_jax.tasks.landmarks import robust_threshold

CONTOURS = ('boundary', 'spine')


def shape(num_points: int, *, size: Sequence[int], threshold: tuple[float, ...] | None = None, z: float = 3.,
          contour: str = 'boundary', cobb_angles: bool = False) -> Task:
    """The task of regressing `num_points` boundary points, with a mask beside them.

    Outputs are a dict of 'points' `[B, P, 2]` (fractions of width and height), 'mask' `[B, H, W]`
    (logits) and, of networks that reconstruct, 'reconstruction_error' `[B]`; targets are 'points' and
    'segmentation'. Loss: (BCE + 1 - Dice) / 2 + MAE [code]. Quality: minus the mean point distance in
    pixels; criterion: quality >= threshold. Divergence: `shape_divergence` [ours].

    Args:
      num_points: P >= 3.
      size: (height, width) of the images in pixels.
      threshold: the smallest acceptable quality; None, for use before calibration, means minus 5 % of
        the height [ours].
      z: how many robust standard deviations above the robust mean a distance is acceptable, when the
        threshold is calibrated; as for landmarks.
      contour: in which order the points enclose the mask: 'boundary', their own, or 'spine',
        `core.polygons.spine_contour`.
      cobb_angles: whether to judge the angles of a spine too.

    Returns:
      The task. `predict` gives 'points' and 'mask' uint8 `[B, H, W]`.

    Raises:
      ValueError: for values out of range.
    """
    height, width = size
    limits = (-.05 * height,) if threshold is None else tuple(threshold)
    if num_points < 3 or len(limits) != 1 or z <= 0:
        raise ValueError(f'shape needs num_points >= 3, one threshold and z > 0, not {num_points}, {threshold} '
                         f'and {z}')
    if contour not in CONTOURS:
        did_you_mean(contour, CONTOURS, 'contour')
    if cobb_angles and contour != 'spine':
        raise ValueError("cobb_angles needs contour='spine'")
    order = spine_contour(num_points) if contour == 'spine' else None
    judge = partial(shape_metrics, extent=(float(height), float(width)), contour=order, cobb_angles=cobb_angles)

    def quality(outputs: Outputs, targets: Targets) -> Array:
        apart = (outputs['points'] - targets['points']) * jnp.array([width, height], outputs['points'].dtype)
        squared = jnp.square(apart).sum(-1)
        # The root's gradient at 0 is infinite.
        return -jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), squared).mean(axis=1)

    def acceptable(outputs: Outputs, targets: Targets) -> Array:
        finite = jnp.isfinite(outputs['points']).all(axis=(1, 2)) & jnp.isfinite(outputs['mask']).all(axis=(1, 2))
        return finite & (quality(outputs, targets) >= limits[0])

    return Task(name='shape', num_outputs=2 * num_points, target_names=('points', 'segmentation'),
                targets=lambda batch: {'points': batch['points'], 'segmentation': batch['segmentation']},
                loss=shape_loss, acceptable=acceptable, divergence=shape_divergence, predict=_predict,
                metrics=lambda outputs, targets, groups=None: judge(outputs, targets, groups),
                verdict_metrics=lambda predictions, targets, groups=None: judge(predictions, targets, groups),
                check_targets=partial(_check, num_points=num_points, size=(height, width)),
                quality=quality, threshold_of=partial(robust_threshold, z=z))


def _predict(outputs: Outputs) -> Any:
    return {'points': outputs['points'], 'mask': (outputs['mask'] > 0).astype(jnp.uint8)}


def _check(targets: Any, *, num_points: int, size: tuple[int, int]) -> None:
    """Raises ValueError for points outside, masks of another size, or an image without a mask, by row."""
    missing = [name for name in ('points', 'segmentation') if name not in targets]
    if missing:
        raise ValueError(f"shape targets lack {' and '.join(missing)}; they hold {', '.join(targets)}")
    check_points(targets['points'], num_points)
    masks = np.asarray(targets['segmentation'])
    expected = (len(targets['points']), *size)
    if masks.shape != expected:
        raise ValueError(f'segmentation: shape {masks.shape} is not {expected}; set size to that of the images')
    empty = np.flatnonzero(~(masks > 0).any(axis=(1, 2)))
    if empty.size:
        raise ValueError(f'segmentation: row {empty[0]} has no foreground ({empty.size} such rows)')
