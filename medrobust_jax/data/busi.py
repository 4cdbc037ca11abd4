"""BUSI: 780 breast ultrasounds in three classes, with its label conflict taken out.

Contents: `CLASS_NAMES`, `locate`, `read`, `open_busi`.

The file is an npz with 'images' uint8 `[N, H, W]` and 'labels' `[N]` (0 normal, 1 benign,
2 malignant). There is no official split: the one here is stratified by class, from a seed, with
copies of one image kept together. Images that occur under two labels are dropped, all of them:
nothing says which label is right.

Example:

    source = open_busi('train', size=64)
    source.info.notes                      # what was dropped

References:
  Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28:104863, 2020.
"""
import hashlib
import os
from pathlib import Path

import numpy as np

from medrobust_jax.data import files, resize
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS, stratified_split

CLASS_NAMES = ('normal', 'benign', 'malignant')
_HOW = ("Save the images (Breast Ultrasound Images Dataset, CC BY 4.0) as DATA_DIR/busi/busi_160.npz, with "
        "'images' uint8 [N, 160, 160] and 'labels' uint8 [N]: 0 normal, 1 benign, 2 malignant.")


def locate(data_dir: str | os.PathLike[str] | None) -> Path:
    """The npz file; raises FileNotFoundError that says how to make it."""
    return files.find_file('busi', ['busi/busi_160.npz', 'busi_160.npz', 'busi/busi.npz', 'busi.npz'],
                           data_dir=data_dir, how_to_get=_HOW)


def read(path: Path, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], tuple[str, ...]]:
    """The cleaned images, their labels and the split.

    Args:
      path: of the npz file.
      seed: of the split.

    Returns:
      `(images uint8 [N, H, W, 1], labels [N], {split: rows}, notes)`.
    """
    arrays = files.read_npz(path, ['images', 'labels'])
    images, labels = arrays['images'], arrays['labels'].reshape(-1)
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) != len(labels):
        raise ValueError(f'{path}: images {images.dtype} {images.shape} and labels {labels.shape}; '
                         'expected uint8 [N, H, W] and [N]')
    copies = _copies(images)
    conflicts = [group for group in np.unique(copies) if len(np.unique(labels[copies == group])) > 1]
    kept = np.flatnonzero(~np.isin(copies, conflicts))
    dropped = ', '.join(_describe(arrays['labels'].reshape(-1), np.flatnonzero(copies == group))
                        for group in conflicts)
    notes = ['Split by class from a seed; BUSI has no official one and no patient ids.']
    if conflicts:
        notes.append(f'Dropped {len(images) - len(kept)} images that occur under two labels: {dropped}.')
    rows = stratified_split(labels[kept], seed=seed, groups=copies[kept])
    return images[kept, ..., None], labels[kept], rows, tuple(notes)


def open_busi(split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
              size: resize.Size | None = None, split_seed: int = 0) -> ArraySource:
    """One split of BUSI: 70 % train, 10 % val, 20 % test.

    Args:
      split: 'train', 'val' or 'test'.
      data_dir: where the file is; None reads the environment.
      size: resize to this; None keeps the file's size.
      split_seed: of the split.

    Raises:
      FileNotFoundError: when the file is absent.
      ValueError: for an unknown split or a damaged file.
    """
    files.check_split(split, SPLITS, 'busi')
    images, labels, rows, notes = read(locate(data_dir), split_seed)
    range_map = 'uint8 / 255' + resize.describe(images.shape[1:], size)
    images = images[rows[split]]
    images = images if size is None else resize.resize_images(images, size)
    return ArraySource(images, labels[rows[split]], name='busi', split=split, class_names=CLASS_NAMES,
                       range_map=range_map, notes=notes)


def _copies(images: np.ndarray) -> np.ndarray:
    """A number per image `[N]`, equal for images with equal pixels."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    first = {}
    return np.asarray([first.setdefault(digest, row) for row, digest in enumerate(digests)])


def _describe(labels: np.ndarray, rows: np.ndarray) -> str:
    return ' = '.join(f'row {row} ({CLASS_NAMES[labels[row]]})' for row in rows)
