"""How good label maps are: Dice, intersection over union, surface distance; NumPy, any number of axes.

The background, class 0, never counts in a mean. What is undefined is NaN and left out: a structure that
is neither in the target nor in the prediction.

Contents: `dice`, `iou`, `hausdorff95`, `hausdorff95_per_class`, `label_map_metrics` (all of them, with
intervals).

Example:

    dice(predictions, targets, num_classes=4).shape                # (N, 3)
    estimates = label_map_metrics(predictions, targets, patients, class_names=('background', 'lesion'))
    estimates['dice_lesion'].value
"""
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from medrobust_jax.metrics.intervals import Estimate, bootstrap


def dice(predictions: ArrayLike, targets: ArrayLike, num_classes: int) -> np.ndarray:
    """`2 |P and T| / (|P| + |T|)` per image and foreground class.

    Args:
      predictions: `[N, *spatial]` int in [0, num_classes).
      targets: likewise.
      num_classes: background included.

    Returns:
      `[N, num_classes - 1]`; NaN where the class is in neither, 0 where it is in one of them only.

    Raises:
      ValueError: for shapes that differ, or values out of range, with the row.
    """
    both, predicted, true = _areas(predictions, targets, num_classes)
    with np.errstate(invalid='ignore'):
        return 2 * both / (predicted + true)


def iou(predictions: ArrayLike, targets: ArrayLike, num_classes: int) -> np.ndarray:
    """`|P and T| / |P or T|` per image and foreground class; arguments and result as `dice`."""
    both, predicted, true = _areas(predictions, targets, num_classes)
    with np.errstate(invalid='ignore'):
        return both / (predicted + true - both)


def hausdorff95(predicted: ArrayLike, true: ArrayLike) -> float:
    """The 95th percentile of the distances between the surfaces of two masks, in pixels.

    The surface of a mask are its pixels with a neighbor outside of it (the image's border counts as
    outside; neighbors share a side). From every surface pixel of either mask the distance to the other's
    nearest surface pixel is taken; the percentile is over both directions together.

    Args:
      predicted: `[*spatial]` bool.
      true: likewise.

    Returns:
      The distance; NaN where both masks are empty. Where exactly one is empty the distance does not
      exist: it counts as the length of the image's diagonal, so that losing a structure never pays.

    References: Huttenlocher et al., IEEE PAMI 15(9), 1993; the percentile of both directions pooled as
    in Maier-Hein et al., Metrics Reloaded, Nature Methods 21, 2024.
    """
    a, b = np.asarray(predicted, bool), np.asarray(true, bool)
    if a.shape != b.shape:
        raise ValueError(f'masks must have equal shapes, got {a.shape} and {b.shape}')
    if not a.any() or not b.any():
        return np.nan if a.any() == b.any() else float(np.linalg.norm(a.shape))
    # All surfaces lie in the box; a frame of False stands for what is outside of it.
    box = ndimage.find_objects((a | b).astype(np.int8))[0]
    edges = [mask & np.logical_not(ndimage.binary_erosion(mask))
             for mask in (np.pad(a[box], 1), np.pad(b[box], 1))]
    to_a, to_b = (np.asarray(ndimage.distance_transform_edt(np.logical_not(edge))) for edge in edges)
    return float(np.percentile(np.concatenate([to_b[edges[0]], to_a[edges[1]]]), 95))


def hausdorff95_per_class(predictions: ArrayLike, targets: ArrayLike, num_classes: int) -> np.ndarray:
    """`hausdorff95` per image and foreground class, `[N, num_classes - 1]`; arguments as `dice`."""
    p, t = _checked(predictions, targets, num_classes)
    return np.array([[hausdorff95(one == c, other == c) for c in range(1, num_classes)]
                     for one, other in zip(p, t, strict=True)]).reshape(len(p), num_classes - 1)


def label_map_metrics(predictions: ArrayLike, targets: ArrayLike, groups: ArrayLike | None = None, *,
                      class_names: Sequence[str]) -> dict[str, Estimate]:
    """Dice, IoU and HD95 of every structure and their means, with bootstrap intervals.

    A structure's number is the mean over the images that hold it or were given it; the numbers without
    a structure's name are means over the structures of these.

    Args:
      predictions: `[N, *spatial]` int.
      targets: likewise.
      groups: `[N]` patient ids, or None; patients are resampled.
      class_names: one per class, the background's first.

    Returns:
      'dice', 'iou', 'hd95' (pixels, lower is better), each also with '_<structure>', and
      'pixel_accuracy' (background included).
    """
    num_classes = len(class_names)
    p, t = _checked(predictions, targets, num_classes)
    tables = {'dice': dice(p, t, num_classes), 'iou': iou(p, t, num_classes),
              'hd95': hausdorff95_per_class(p, t, num_classes)}
    found = {}
    for name, values in tables.items():
        found[name] = bootstrap(_mean_of_means, (values,), groups=groups, weighted=True)
        for column, structure in enumerate(class_names[1:]):
            found[f'{name}_{structure}'] = bootstrap(_mean_of_means, (values[:, column:column + 1],),
                                                     groups=groups, weighted=True)
    right = (p == t).reshape(len(p), -1).mean(axis=1)
    found['pixel_accuracy'] = bootstrap(_mean_of_means, (right[:, None],), groups=groups, weighted=True)
    return found


def _mean_of_means(values: np.ndarray, weights: np.ndarray | None = None) -> Any:
    """The mean over columns of the columns' (weighted) means over rows; NaN entries and columns are left out.

    Args:
      values: `[N, K]`.
      weights: `[R, N]`, or None.

    Returns:
      `[R]`, or a number.
    """
    counted = ~np.isnan(values)
    rows = np.ones((1, len(values))) if weights is None else weights
    sizes = rows @ counted
    means = np.divide(rows @ np.where(counted, values, 0), sizes, out=np.full(sizes.shape, np.nan),
                      where=sizes > 0)
    kept = ~np.isnan(means)
    result = np.divide(np.where(kept, means, 0).sum(1), kept.sum(1), out=np.full(len(rows), np.nan),
                       where=kept.any(1))
    return result[0] if weights is None else result


def _checked(predictions: ArrayLike, targets: ArrayLike, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    p, t = np.asarray(predictions), np.asarray(targets)
    if p.shape != t.shape or p.ndim < 2:
        raise ValueError(f'label maps must be [N, *spatial] twice, got {p.shape} and {t.shape}')
    for what, maps in (('prediction', p), ('target', t)):
        bad = np.flatnonzero(((maps < 0) | (maps >= num_classes)).reshape(len(maps), -1).any(axis=1))
        if bad.size:
            raise ValueError(f'{what} {bad[0]} holds the class {maps[bad[0]].max()}, outside '
                             f'0..{num_classes - 1}')
    return p, t


def _areas(predictions: ArrayLike, targets: ArrayLike,
           num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels of `P and T`, of P and of T, `[N, num_classes - 1]` each."""
    p, t = (maps.reshape(len(maps), -1) for maps in _checked(predictions, targets, num_classes))
    classes = range(1, num_classes)
    both = np.stack([((p == c) & (t == c)).sum(1) for c in classes], axis=1)
    return both, np.stack([(p == c).sum(1) for c in classes], 1), np.stack([(t == c).sum(1) for c in classes], 1)
