"""Segmentation: one class per pixel, of images with any number of spatial axes.

Contents: `segmentation`.

Example:

    task = segmentation(4, class_names=('background', 'RV', 'myocardium', 'LV'), threshold=(.85,))
    losses = task.loss(logits, targets)          # logits [B, H, W, 4], targets [B, H, W] -> [B]
    task.quality(logits, targets)                # the Dice of the best structure, [B]
"""
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.types import Array, Outputs, Targets, Task
from medrobust_jax.losses.segmentation import (
    all_finite,
    best_dice,
    dice_cross_entropy,
    final_logits,
    mean_cross_entropy,
    pixel_kl,
)
from medrobust_jax.metrics.segmentation import label_map_metrics

LOSSES = {'dice_ce': dice_cross_entropy, 'ce': mean_cross_entropy}


def segmentation(num_classes: int, *, threshold: tuple[float, ...] = (0.8,), over: str = 'best',
                 loss: str = 'dice_ce', class_names: Sequence[str] | None = None) -> Task:
    """The task of naming the class of every pixel; class 0 is the background.

    Outputs are logits `[B, *spatial, C]`, or those of deep supervision in training (see
    `losses.segmentation`); targets are classes `[B, *spatial]` int. Loss: `1 - soft Dice + cross-entropy`.
    Criterion: the Dice of the best foreground class (`losses.segmentation.best_dice`, which also says what
    an image without foreground counts as) reaches the threshold. Divergence: KL per pixel.

    Args:
      num_classes: >= 2 and <= 256, background included.
      threshold: one number in [0, 1]. .8 is for use without calibration [ours]; `threshold_of` is the mean
        quality of a clean-trained model, as in the adversarial training of Ma and Liang.
      over: which structures the quality is about: 'best', 'mean' or 'worst'.
      loss: 'dice_ce' or 'ce', the mean cross-entropy alone.
      class_names: one per class, for the metrics' names; default 'class 1', ...

    Raises:
      ValueError: for values out of range.

    References: Ma and Liang, Adaptive Adversarial Training to Improve Adversarial Robustness of DNNs for
    Medical Image Segmentation and Detection, arXiv 2206.01736: the criterion.
    """
    if not 2 <= num_classes <= 256:
        raise ValueError(f'segmentation needs num_classes in 2..256, background included, not {num_classes}')
    if len(threshold) != 1 or not 0 <= threshold[0] <= 1:
        raise ValueError(f'segmentation takes one threshold, a Dice in [0, 1], not {threshold}')
    if loss not in LOSSES:
        raise ValueError(f"segmentation's loss is one of {', '.join(LOSSES)}, not '{loss}'")
    names = tuple(class_names or ('background', *(f'class {c}' for c in range(1, num_classes))))
    if len(names) != num_classes:
        raise ValueError(f'{len(names)} class names for {num_classes} classes; the first is the background\'s')
    quality = partial(best_dice, over=over)

    def acceptable(outputs: Outputs, targets: Targets) -> Array:
        return (quality(outputs, targets) >= threshold[0]) & all_finite(outputs)

    def verdict_metrics(predictions: Array, targets: Targets, groups: np.ndarray | None = None) -> dict:
        return label_map_metrics(predictions, targets, groups, class_names=names)

    def metrics(outputs: Outputs, targets: Targets, groups: np.ndarray | None = None) -> dict:
        return verdict_metrics(np.asarray(final_logits(outputs)).argmax(axis=-1), targets, groups)

    return Task(name='segmentation', num_outputs=num_classes, target_names=('segmentation',),
                targets=lambda batch: batch['segmentation'], loss=LOSSES[loss], acceptable=acceptable,
                divergence=pixel_kl, predict=_label_map, metrics=metrics, verdict_metrics=verdict_metrics,
                check_targets=partial(_check_targets, num_classes=num_classes), quality=quality,
                threshold_of=lambda qualities: (float(np.mean(qualities)),))


def _label_map(outputs: Outputs) -> Array:
    """The class of every pixel, uint8 `[B, *spatial]`."""
    return jnp.argmax(final_logits(outputs), axis=-1).astype(jnp.uint8)


def _check_targets(targets: Targets, *, num_classes: int) -> None:
    """Raises unless targets are `[N, *spatial]` integers in [0, num_classes)."""
    array = np.asarray(targets)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f'segmentation targets have dtype {array.dtype}, not an integer type')
    if array.ndim not in (3, 4):
        raise ValueError(f'segmentation targets of shape {array.shape} are not [batch, *spatial] with 2 or 3 '
                         'spatial axes: classes, not one-hot maps')
    low, high = (extreme(array, axis=tuple(range(1, array.ndim))) for extreme in (np.min, np.max))
    bad = np.flatnonzero((low < 0) | (high >= num_classes))
    if bad.size:
        row = int(bad[0])
        unknown = low[row] if low[row] < 0 else high[row]
        raise ValueError(f'segmentation targets: row {row} holds the unknown label {unknown}, outside '
                         f'0..{num_classes - 1} ({bad.size} such rows); change the masks or num_classes')
