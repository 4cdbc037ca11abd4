"""ACDC: cardiac MR slices with right ventricle, myocardium and left ventricle, split by patient.

Contents: `CLASS_NAMES`, `SPLIT_PATIENTS`, `locate`, `read`, `open_acdc`.

The file is an npz of slices: 'image' uint8 `[N, H, W]`, 'label' `[N, H, W]` (0 background, 1 right
ventricle, 2 myocardium, 3 left ventricle) and 'patient' `[N]`, 1 to 100. The official test patients
(101-150) are not in it; patients 1-70 train, 71-80 validate and 81-100 test. There is no pixel spacing in
it, so that distances are in pixels.

Example:

    source = open_acdc('train', size=64)
    source[0]['segmentation'].shape               # (64, 64); source[0]['group'] is the patient

References:
  Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-Structures Segmentation and
  Diagnosis: Is the Problem Solved?, IEEE TMI 37(11), 2018.
"""
import os
from pathlib import Path

import numpy as np

from medrobust_jax.data import files, masks, resize
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS

CLASS_NAMES = ('background', 'RV', 'myocardium', 'LV')
SPLIT_PATIENTS = {'train': (1, 70), 'val': (71, 80), 'test': (81, 100)}  # first and last
_HOW = ("Save the slices (ACDC, CC BY-NC-SA 4.0, registration may be asked for) as "
        "DATA_DIR/acdc/acdc_slices_160.npz, with 'image' uint8 [N, 160, 160], 'label' [N, 160, 160] in 0..3 and "
        "'patient' [N] in 1..100.")


def locate(data_dir: str | os.PathLike[str] | None) -> Path:
    """The npz file; raises FileNotFoundError that says how to make it."""
    return files.find_file('acdc', ['acdc/acdc_slices_160.npz', 'acdc_slices_160.npz', 'acdc/acdc.npz'],
                           data_dir=data_dir, how_to_get=_HOW)


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """All slices.

    Returns:
      `(images uint8 [N, H, W, 1], masks uint8 [N, H, W], patients [N], {split: rows})`.

    Raises:
      ValueError: for wrong shapes, unknown labels (with the row), or patients that are missing or not
        in 1..100.
    """
    arrays = files.read_npz(path)
    missing = [name for name in ('image', 'label') if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {' and '.join(missing)}; it holds {', '.join(arrays)}")
    if 'patient' not in arrays:
        raise ValueError(f"{path} lacks 'patient', one id per slice: slices of a patient resemble each other, so "
                         'without ids no honest split can be made')
    images, labels, patients = arrays['image'], arrays['label'], arrays['patient']
    if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape:
        raise ValueError(f'{path}: images {images.dtype} {images.shape} and masks {labels.shape}; expected uint8 '
                         '[N, H, W] twice, a mask of its image\'s size')
    if patients.shape != (len(images),):
        raise ValueError(f'{path}: {patients.shape} patient ids for {len(images)} slices')
    if not np.issubdtype(patients.dtype, np.integer):
        raise ValueError(f"{path}: 'patient' holds {patients.dtype}, not whole numbers 1..100; row 0 is "
                         f'{patients[0]!r}')
    masks.check_known(labels, len(CLASS_NAMES), str(path))
    bad = np.flatnonzero(~((patients >= 1) & (patients <= 100)))
    if bad.size:
        raise ValueError(f'{path}: row {bad[0]} is of patient {patients[bad[0]]}; the split by patient knows '
                         '1..100')
    rows = {split: np.flatnonzero((patients >= first) & (patients <= last))
            for split, (first, last) in SPLIT_PATIENTS.items()}
    return images[..., None], labels.astype(np.uint8), patients, rows


def open_acdc(split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
              size: resize.Size | None = None) -> ArraySource:
    """One split of ACDC; groups are patients.

    Args:
      split: 'train', 'val' or 'test'.
      data_dir: where the file is; None reads the environment.
      size: resize to this; None keeps the file's size. Masks go with their images (`masks.resize_masks`).

    Raises:
      FileNotFoundError: when the file is absent.
      ValueError: for an unknown split or a damaged file.
    """
    files.check_split(split, SPLITS, 'acdc')
    images, labels, patients, rows = read(locate(data_dir))
    chosen = rows[split]
    if not chosen.size:
        first, last = SPLIT_PATIENTS[split]
        raise ValueError(f"acdc: the file holds no patient of split '{split}' ({first} to {last})")
    range_map = 'uint8 / 255' + resize.describe(images.shape[1:], size)
    images, labels = images[chosen], labels[chosen]
    if size is not None:
        images, labels = resize.resize_images(images, size), masks.resize_masks(labels, size)
    empty = int((labels.reshape(len(labels), -1).max(axis=1) == 0).sum())
    notes = ('Split by patient: 1-70 train, 71-80 val, 81-100 test; the official test patients are not included.',
             'No pixel spacing: distances are in pixels.',
             f'{empty} of {len(labels)} slices show none of the structures; they are kept.')
    return ArraySource(images, {'segmentation': labels}, name='acdc', split=split, class_names=CLASS_NAMES,
                       groups=patients[chosen], range_map=range_map, notes=notes)
