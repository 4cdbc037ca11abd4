"""Any npz file with images and labels.

Contents: `open_npz`.

Arrays are called `<split>_images` and `<split>_labels`, as in MedMNIST, or `images` and `labels`
(then a split is made by class, from a seed). Groups (`<split>_groups`, `groups`) are optional.

Example:

    np.savez('mine.npz', images=images_uint8, labels=labels, groups=patients)
    source = open_npz('mine.npz', 'train', class_names=('healthy', 'ill'))
"""
import os
from collections.abc import Sequence

import numpy as np

from medrobust_jax.data import files, listing
from medrobust_jax.data.resize import Size, describe, resize_images
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS, stratified_split


def open_npz(path: str, split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
             size: Size | None = None, class_names: Sequence[str] | None = None,
             channels: int | None = None, max_value: int | None = None,
             split_seed: int = 0) -> ArraySource:
    """One split of an npz file.

    Args:
      path: the file.
      split: 'train', 'val' or 'test'.
      data_dir: where a relative path is also looked for; None reads the environment.
      size: resize to this.
      class_names: one per class; None numbers the classes up to the file's largest label.
      channels: expected number; None allows 1 and 3. Images `[N, H, W]` count as one channel.
      max_value: of uint16 images, the raw value that becomes 1.
      split_seed: of a split made here: 70 % train, 10 % val, 20 % test, groups kept together.

    Raises:
      FileNotFoundError: when the file is absent.
      ValueError: for a damaged file, missing arrays, or data that break the contract.
    """
    files.check_split(split, SPLITS, 'an npz')
    file = listing.place(path, data_dir, 'npz file')
    arrays = files.read_npz(file)
    images, labels, groups = _take(arrays, split, split_seed, file)
    if class_names is None:
        class_names = _numbers(arrays, file)
    range_map = None
    if size is not None and (words := describe(images.shape[1:], size)):
        images = resize_images(images, size)
        scales = {'uint8': 'uint8 / 255', 'uint16': f'uint16 / {max_value}'}
        range_map = scales.get(images.dtype.name, 'floats as they are') + words
    return ArraySource(images, labels, name=f'npz:{path}', split=split, class_names=class_names,
                       groups=groups, channels=channels, max_value=max_value, range_map=range_map)


def _take(arrays: dict[str, np.ndarray], split: str, seed: int,
          file: os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Images with a channel axis, labels `[N]` and groups of one split."""
    official = any(f'{each}_images' in arrays for each in SPLITS)
    prefix = f'{split}_' if official else ''
    missing = [name for name in (f'{prefix}images', f'{prefix}labels') if name not in arrays]
    if missing:
        raise ValueError(f"{file} lacks {' and '.join(missing)}; it holds {', '.join(arrays)}")
    images, labels = (arrays[f'{prefix}{each}'] for each in ('images', 'labels'))
    groups = arrays.get(f'{prefix}groups')
    images = images[..., None] if images.ndim == 3 else images
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if official or labels.shape != (len(images),):  # a wrong shape is refused by the source
        return images, labels, groups
    rows = stratified_split(labels, seed=seed, groups=groups)[split]
    return images[rows], labels[rows], None if groups is None else groups[rows]


def _numbers(arrays: dict[str, np.ndarray], file: os.PathLike[str]) -> tuple[str, ...]:
    labels = [array for name, array in arrays.items() if name.endswith('labels') and array.size]
    if not all(np.issubdtype(array.dtype, np.integer) for array in labels) or not labels:
        raise ValueError(f'{file}: labels must be whole numbers; they are '
                         f"{', '.join(str(array.dtype) for array in labels) or 'absent'}")
    return tuple(f'class {label}' for label in range(max(int(array.max()) for array in labels) + 1))
