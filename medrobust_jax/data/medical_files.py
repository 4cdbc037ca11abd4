"""DICOM and NIfTI slices, through a stated window, as images in [0, 1].

Contents: `open_dicom`, `open_nifti`, `apply_window`, `read_dicom`, `read_volume`, `read_nifti`,
`read_spacing`, `windowed`.

A window (center, width) in the file's own units (Hounsfield units for CT) maps center - width/2 to
0 and center + width/2 to 1 and clips outside: DICOM's LINEAR_EXACT function. Common ones are
(40, 400) for the abdomen, (-600, 1500) for lungs, (40, 80) for the brain. Slices are taken as
stored; nothing is reoriented.

Example:

    ct = open_dicom('~/ct', 'train', window=(40, 400), size=128)        # ~/ct/<class>/*.dcm
    mr = open_nifti('~/mr/labels.csv', 'train', axis=2, window='volume', size=128)
"""
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pydicom
from nibabel.filebasedimages import ImageFileError
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from medrobust_jax.data import listing
from medrobust_jax.data.image_folder import stack
from medrobust_jax.data.resize import Size
from medrobust_jax.data.source import ArraySource

Window = tuple[float, float]
Directory = str | os.PathLike[str] | None


def open_dicom(path: str, split: str = 'train', *, window: Window | Literal['full', 'file'] = 'full',
               data_dir: Directory = None, size: Size | None = None, split_seed: int = 0,
               val_fraction: float = 0.) -> ArraySource:
    """One split of a set of single-frame grey DICOM files; groups are patient ids.

    Args:
      path: a folder `class/*.dcm` or `split/class/*.dcm`, or a CSV (see `listing`).
      split: 'train', 'val' or 'test'.
      window: (center, width) after rescale slope and intercept; 'full' for all values that the
        file's stored bits can hold; 'file' for the window in each file's header.
      data_dir: where a relative path is also looked for; None reads the environment.
      size: resize to this; required where slices differ in size.
      split_seed: of a split made here, patients kept together.
      val_fraction: see `listing.choose`.

    Raises:
      FileNotFoundError: when the folder or CSV is absent.
      ValueError: naming the file, when it is damaged, compressed in a way that cannot be decoded
        here, not single-frame grey, or lacks the window asked for.
    """
    if window not in ('full', 'file'):
        _check_window(window)
    entries = _entries(listing.place(path, data_dir, 'DICOM folder or table'), ('.dcm', '.dicom'))
    entries = [entry if entry.group else entry._replace(group=_patient(entry.path)) for entry in entries]
    chosen = listing.choose(entries, split, split_seed=split_seed, val_fraction=val_fraction)
    slices = [read_dicom(entry.path, window) for entry in chosen]
    how = {'full': 'the full range of the stored bits', 'file': "each file's own window"}.get(
        window if isinstance(window, str) else '', f'window {window}')
    return _source(slices, chosen, listing.class_names(entries), f'dicom:{path}', split, size,
                   f'rescale slope and intercept, {how} to [0, 1], MONOCHROME1 inverted')


def open_nifti(path: str, split: str = 'train', *, axis: int = 2,
               window: Window | Literal['volume'] = 'volume', data_dir: Directory = None,
               size: Size | None = None, split_seed: int = 0, val_fraction: float = 0.) -> ArraySource:
    """One split of slices of NIfTI volumes; groups keep a volume's slices in one split.

    Args:
      path: a CSV with the columns file and label and, optionally, slice (a number; empty means
        every slice of the volume), split, group (a patient; empty means the file).
      split: 'train', 'val' or 'test'.
      axis: the array axis along which slices are numbered, 0, 1 or 2.
      window: (center, width) after the file's slope and intercept; 'volume' maps each volume's
        minimum to 0 and maximum to 1 (MR has no unit).
      data_dir: where a relative path is also looked for; None reads the environment.
      size: resize to this; required where slices differ in size.
      split_seed: of a split made here.
      val_fraction: see `listing.choose`.

    Raises:
      FileNotFoundError: when the CSV or a volume is absent.
      ValueError: naming the file, when it is damaged, not 3-D, not finite or lacks the slice.
    """
    if window != 'volume':
        _check_window(window)
    if axis not in (0, 1, 2):
        raise ValueError(f'axis = {axis} must be 0, 1 or 2')
    entries = listing.from_table(listing.place(path, data_dir, 'table of NIfTI slices'))
    entries = [entry if entry.group else entry._replace(group=str(entry.path.name)) for entry in entries]
    chosen, slices, volumes = [], [], {}
    for entry in listing.choose(entries, split, split_seed=split_seed, val_fraction=val_fraction):
        if entry.path not in volumes:
            volumes = {entry.path: np.moveaxis(read_volume(entry.path, window), axis, 0)}  # one at a time
        volume = volumes[entry.path]
        for number in range(len(volume)) if not entry.slice else [_number(entry, len(volume))]:
            chosen.append(entry)
            slices.append(volume[number][..., None])
    how = "each volume's minimum and maximum" if window == 'volume' else f'window {window}'
    return _source(slices, chosen, listing.class_names(entries), f'nifti:{path}', split, size,
                   f'file slope and intercept, {how} to [0, 1], slices along axis {axis}')


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """clip((values - center) / width + 1/2, 0, 1), float32 of the same shape."""
    center, width = window
    return np.clip((values.astype(np.float64) - center) / width + .5, 0, 1).astype(np.float32)


def read_dicom(path: Path, window: Window | str) -> np.ndarray:
    """One single-frame grey DICOM slice, float32 `[H, W, 1]` in [0, 1]; see `open_dicom`."""
    dataset = _dicom(path)
    kind = dataset.get('PhotometricInterpretation', '')
    frames = int(dataset.get('NumberOfFrames', 1) or 1)
    if kind not in ('MONOCHROME1', 'MONOCHROME2') or frames != 1:
        raise ValueError(f"{path}: {frames} frames of '{kind}'; only single frames of MONOCHROME1 and "
                         'MONOCHROME2 are read')
    try:
        stored = dataset.pixel_array
    except (RuntimeError, NotImplementedError, AttributeError, ValueError, EOFError) as error:
        syntax = getattr(getattr(dataset, 'file_meta', None), 'TransferSyntaxUID', None)
        name = syntax.name if syntax is not None else 'no transfer syntax'
        raise ValueError(f'{path}: pixels cannot be decoded ({name}): {error}. Decompress the file, e.g. '
                         'with gdcmconv --raw, or install a decoder that pydicom names') from error
    slope, intercept = float(dataset.get('RescaleSlope', 1)), float(dataset.get('RescaleIntercept', 0))
    image = apply_window(slope * stored.astype(np.float64) + intercept,
                         _dicom_window(dataset, window, slope, intercept, path))
    return (1 - image if kind == 'MONOCHROME1' else image)[..., None]


def read_volume(path: Path, window: Window | str) -> np.ndarray:
    """A 3-D NIfTI volume, float32 in [0, 1]; see `open_nifti`."""
    return windowed(read_nifti(path)[0], window, path)


def read_nifti(path: Path, channel: int | None = None) -> tuple[np.ndarray, tuple[float, ...]]:
    """The values of a 3-D NIfTI volume and its spacing.

    Args:
      path: the file.
      channel: which one of a 4-D volume's last axis; None refuses 4-D volumes.

    Returns:
      `(values float64 [X, Y, Z], spacing in the file's unit, one per axis)`.

    Raises:
      FileNotFoundError: when the file is absent.
      ValueError: naming the file, when it is damaged, not 3-D, not finite or lacks the channel.
    """
    image = _nifti(path)
    try:
        values = np.asarray(image.dataobj, dtype=np.float64)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f'{path} is truncated or damaged ({error})') from error
    spacing = read_spacing(path)
    if values.ndim == 4 and channel is not None:
        if not 0 <= channel < values.shape[3]:
            raise ValueError(f'{path}: no channel {channel}; there are {values.shape[3]}')
        values = values[..., channel]
    if values.ndim != 3:
        raise ValueError(f'{path}: a volume of shape {values.shape}; 3-D ones are read')
    if not np.isfinite(values).all():
        raise ValueError(f'{path} holds NaN or inf')
    return values, spacing


def read_spacing(path: Path) -> tuple[float, ...]:
    """The spacing in a NIfTI file's header, one number per spatial axis; reads no voxel."""
    image = _nifti(path)
    with image.file_map['image'].get_prepare_fileobj('rb') as stream:
        # As written: opened in the usual way, a spacing of 0 or less becomes another one without a word.
        header = type(image.header).from_fileobj(stream, check=False)
    return tuple(float(zoom) for zoom in header['pixdim'][1:4])


def windowed(values: np.ndarray, window: Window | str, path: Path) -> np.ndarray:
    """Values through a window, or from their minimum to their maximum for 'volume'; float32 in [0, 1]."""
    if window == 'volume':
        low, high = values.min(), values.max()
        if low == high:
            raise ValueError(f'{path} is constant; it has no range to map to [0, 1]')
        window = ((low + high) / 2, high - low)
    return apply_window(values, window)  # type: ignore[arg-type]


def _source(slices: list[np.ndarray], chosen: Sequence[listing.Entry], names: tuple[str, ...], name: str,
            split: str, size: Size | None, range_map: str) -> ArraySource:
    images, resized = stack(slices, [entry.path for entry in chosen], size)
    return ArraySource(images, [names.index(entry.label) for entry in chosen], name=name, split=split,
                       class_names=names, groups=[entry.group for entry in chosen],
                       range_map=range_map + resized)


def _entries(path: Path, suffixes: tuple[str, ...]) -> list[listing.Entry]:
    return listing.from_folders(path, suffixes) if path.is_dir() else listing.from_table(path)


def _dicom(path: Path, *, header_only: bool = False) -> pydicom.Dataset:
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}')
    try:
        return pydicom.dcmread(path, stop_before_pixels=header_only)
    except (InvalidDicomError, EOFError, OSError) as error:
        raise ValueError(f'{path} is truncated, damaged or no DICOM file ({error})') from error


def _nifti(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}')
    try:
        return nibabel.load(path)  # type: ignore[attr-defined]
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f'{path} is truncated, damaged or no NIfTI file ({error})') from error


def _patient(path: Path) -> str:
    # A file without an id is a patient of its own.
    return str(_dicom(path, header_only=True).get('PatientID', '') or path.name)


def _dicom_window(dataset: pydicom.Dataset, window: Window | str, slope: float, intercept: float,
                  path: Path) -> Window:
    if not isinstance(window, str):
        return window
    if window == 'file':
        values = [dataset.get(name) for name in ('WindowCenter', 'WindowWidth')]
        if None in values:
            raise ValueError(f"{path} states no window; give window=(center, width) or 'full'")
        # Several windows may be listed; the first is the default view.
        first = [float(value[0] if isinstance(value, MultiValue) else value)
                 for value in values]
        _check_window((first[0], first[1]))
        return first[0], first[1]
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    low, high = (-2**(bits - 1), 2**(bits - 1) - 1) if signed else (0, 2**bits - 1)
    return slope * (low + high) / 2 + intercept, abs(slope) * (high - low)


def _check_window(window: Window | str) -> None:
    if isinstance(window, str) or len(window) != 2 or not np.isfinite(window).all() or window[1] <= 0:
        raise ValueError(f"window = {window!r} must be (center, width) with width > 0, or for DICOM 'full' or "
                         "'file', for NIfTI 'volume'")


def _number(entry: listing.Entry, count: int) -> int:
    if not entry.slice.isdecimal() or int(entry.slice) >= count:
        raise ValueError(f'{entry.path}: slice {entry.slice} of {count}')
    return int(entry.slice)
