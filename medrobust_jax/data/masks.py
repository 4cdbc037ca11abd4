"""Label maps from files: unknown labels and sizes that do not fit are refused, resizing keeps areas.

Contents: `resize_masks`, `classes_of`, `check_pair`, `check_known`.

Example:

    small = resize_masks(masks, 64)                                   # [N, 64, 64], the dtype it came in
    classes = classes_of(gray, {0: 0, 255: 1}, path)                  # 255 becomes 1, anything else is refused
"""
from collections.abc import Mapping
from typing import Any

import numpy as np

from medrobust_jax.data.resize import Size, resize_images, target_size


def resize_masks(masks: np.ndarray, size: Size) -> np.ndarray:
    """Resizes label maps `[N, H, W]`: of every class the share of each new pixel, the largest share wins.

    The shares are made by the filter that `resize_images` uses, so that masks stay where their images are.
    Of equal shares the smaller class wins.
    """
    if masks.shape[1:] == target_size(size):
        return masks
    best = np.full((len(masks), *target_size(size)), -1, np.int16)
    chosen = np.zeros(best.shape, masks.dtype)
    for label in np.unique(masks):
        holds = (masks == label).reshape(len(masks), -1).any(axis=1)
        indicator = 255 * (masks[holds] == label).astype(np.uint8)
        share = resize_images(indicator[..., None], size)[..., 0].astype(np.int16)
        more = share > best[holds]
        chosen[holds] = np.where(more, label, chosen[holds])
        best[holds] = np.where(more, share, best[holds])
    return chosen


def classes_of(values: np.ndarray, classes: Mapping[int, int], where: Any) -> np.ndarray:
    """Gray values of a mask file as classes, uint8 of the same shape.

    Args:
      values: integers of any shape.
      classes: gray value -> class.
      where: the file, for the message.

    Raises:
      ValueError: for a value that is not in `classes`, with its number of pixels.
    """
    found, counts = np.unique(values, return_counts=True)
    unknown = [(value, count) for value, count in zip(found.tolist(), counts.tolist(), strict=True)
               if value not in classes]
    if unknown:
        held = ', '.join(f'{value} ({count} pixels)' for value, count in unknown[:5])
        more = ', ...' if len(unknown) > 5 else ''
        raise ValueError(f'{where}: the mask holds the unknown label {held}{more}; known are '
                         f'{", ".join(map(str, classes))}')
    return np.asarray([classes[value] for value in found.tolist()], np.uint8)[np.searchsorted(found, values)]


def check_pair(image: np.ndarray, mask: np.ndarray, where_image: Any, where_mask: Any) -> None:
    """Raises ValueError, with both names, unless image `[*spatial, C]` and mask `[*spatial]` have one size."""
    if image.shape[:-1] != mask.shape:
        raise ValueError(f'{where_mask} is {_size(mask.shape)} and its image {where_image} '
                         f'{_size(image.shape[:-1])}; a mask must have the size of its image')


def check_known(masks: np.ndarray, num_classes: int, what: str) -> None:
    """Raises ValueError, with the row, unless masks `[N, *spatial]` are integers in [0, num_classes)."""
    if not np.issubdtype(masks.dtype, np.integer):
        raise ValueError(f'{what}: masks have dtype {masks.dtype}, not an integer type')
    flat = masks.reshape(len(masks), -1)
    bad = np.flatnonzero((flat.min(axis=1) < 0) | (flat.max(axis=1) >= num_classes))
    if bad.size:
        row = int(bad[0])
        unknown = [value for value in np.unique(flat[row]).tolist() if not 0 <= value < num_classes]
        raise ValueError(f'{what}: row {row} holds the unknown label {unknown[0]}, outside 0..{num_classes - 1} '
                         f'({bad.size} such rows)')


def _size(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape))
