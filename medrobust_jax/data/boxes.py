"""Boxes as data sets have them, made fit for a source: checked, clipped, padded.

Contents: `Objects`, `clean`, `pack`.

The rules: a box that is not finite, or lies wholly outside of its image, is refused. One of zero area, or
inverted, is refused too, or dropped and counted where the reader says so. One that reaches over the edge by
more than rounding is clipped and counted. Images without any object are kept.

Example:

    objects, dropped, clipped = clean(boxes, labels, where='scan_7.xml', drop_empty=True)
    targets = pack([objects, ...])               # 'boxes' [N, M, 4], 'box_labels' [N, M], 'box_mask' [N, M]
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_ROUNDING = 1e-4  # how far over the edge a box may reach without being counted, as a fraction of the image


class Objects(NamedTuple):
    """The objects of one image.

    Attributes:
      boxes: float32 `[m, 4]`, (x_min, y_min, x_max, y_max) as fractions of width and height.
      labels: int32 `[m]`.
    """

    boxes: np.ndarray
    labels: np.ndarray


def clean(boxes: np.ndarray, labels: np.ndarray, *, where: str,
          drop_empty: bool = False) -> tuple[Objects, int, int]:
    """The usable objects of one image, how many were dropped, and how many clipped.

    Args:
      boxes: `[m, 4]` in fractions, as the file says.
      labels: `[m]` int.
      where: the file, for messages.
      drop_empty: whether boxes of zero area, or inverted, are dropped; they are refused otherwise.

    Raises:
      ValueError: naming file and object, for a box that cannot be used.
    """
    boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels, np.int32).reshape(-1)
    inside = np.clip(boxes, 0, 1).astype(np.float32)  # slivers at the edge are empty once cut to the image
    touching = (boxes[:, 2:] > 0).all(axis=1) & (boxes[:, :2] < 1).all(axis=1)
    empty = ~(boxes[:, 2:] > boxes[:, :2]).all(axis=1) | (touching & ~(inside[:, 2:] > inside[:, :2]).all(axis=1))
    outside = (boxes[:, 2:] <= 0).any(axis=1) | (boxes[:, :2] >= 1).any(axis=1)
    for problem, bad, cure in (
            ('is not finite', ~np.isfinite(boxes).all(axis=1), ''),
            ('has zero area or is inverted', empty & (not drop_empty), '; drop_empty=True drops and counts them'),
            ('lies outside of the image', outside & ~empty, '')):
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f'{where}, object {row + 1}: box {boxes[row].round(4).tolist()} (fractions of width '
                             f'and height) {problem}{cure}')
    boxes, labels = boxes[~empty], labels[~empty]
    over = ((boxes < -_ROUNDING) | (boxes > 1 + _ROUNDING)).any(axis=1)
    return Objects(np.clip(boxes, 0, 1).astype(np.float32), labels), int(empty.sum()), int(over.sum())


def pack(objects: Sequence[Objects]) -> dict[str, np.ndarray]:
    """The objects of N images as targets of one shape, padded to the most that an image has (at least 1).

    Returns:
      'boxes' float32 `[N, M, 4]`, 'box_labels' int32 `[N, M]`, 'box_mask' bool `[N, M]`; zeros on padding.
    """
    most = max([1, *(len(each.labels) for each in objects)])
    boxes, labels = np.zeros((len(objects), most, 4), np.float32), np.zeros((len(objects), most), np.int32)
    mask = np.zeros((len(objects), most), bool)
    for row, each in enumerate(objects):
        count = len(each.labels)
        boxes[row, :count], labels[row, :count], mask[row, :count] = each.boxes, each.labels, True
    return {'boxes': boxes, 'box_labels': labels, 'box_mask': mask}
