"""Tasks of the Medical Segmentation Decathlon, from NIfTI: slices and volumes of one spacing.

Contents: `open_msd_slices`, `open_msd_volumes`, `read_task`, `check_spacing`, `resample`.

A task is a folder as its archive unpacks, `Task02_Heart` for instance: dataset.json, imagesTr and labelsTr
(the official test images have no labels). Every volume is resampled to one spacing, equal in all directions
(for slices: within the slice), then cut or filled up with zeros to one size around its center. The spacing
and the labels that were cut off stand in the source's notes. Cases are the groups.

Example:

    source = open_msd_slices('Task02_Heart', 'train', size=96)
    volumes = open_msd_volumes('Task04_Hippocampus', 'train', size=48, spacing=1.0)

References:
  Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 2022.
"""
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from medrobust_jax.data import files, listing
from medrobust_jax.data.masks import check_pair, classes_of
from medrobust_jax.data.medical_files import Window, read_nifti, read_spacing, windowed
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS, stratified_split

LONGEST, MOST_ANISOTROPIC = 20.0, 20.0  # mm, and the ratio of the largest to the smallest spacing [ours]
Directory = str | os.PathLike[str] | None


class MsdTask(NamedTuple):
    """What dataset.json says."""

    root: Path
    class_names: tuple[str, ...]
    modalities: tuple[str, ...]
    cases: tuple[tuple[Path, Path], ...]  # image, label


def open_msd_slices(task: str, split: str = 'train', *, size: int, data_dir: Directory = None,
                    axis: int | None = None, spacing: float | None = None, channel: int = 0,
                    window: Window | str | None = None, keep_empty: bool = False,
                    split_seed: int = 0) -> ArraySource:
    """Slices `[size, size, 1]` of one split.

    Args:
      task: the task's folder, as it stands or in the data directory.
      split: 'train', 'val' or 'test': 70/10/20 % of the labeled cases, from a seed.
      size: pixels after cutting or filling up.
      data_dir: where `task` is also looked for; None reads the environment.
      axis: which axis the slices are numbered along; None takes, per volume, the one of largest spacing
        (the last of equal ones).
      spacing: mm per pixel within a slice; None takes the median over all labeled cases.
      channel: of volumes with several modalities.
      window: (center, width) in the file's unit, or 'volume' for every volume's own range; None is 'volume'
        for MRI and refused for CT.
      keep_empty: whether slices without any labeled pixel are kept.
      split_seed: of the split.

    Raises:
      FileNotFoundError: when the folder or a file is absent.
      ValueError: naming the file, for a damaged dataset.json or volume, unknown labels, a label map of
        another size or spacing than its image, or an odd spacing.
    """
    return _source(task, split, size, data_dir, axis, spacing, channel, window, split_seed, slices=True,
                   keep_empty=keep_empty)


def open_msd_volumes(task: str, split: str = 'train', *, size: int, data_dir: Directory = None,
                     spacing: float | None = None, channel: int = 0, window: Window | str | None = None,
                     split_seed: int = 0) -> ArraySource:
    """Volumes `[size, size, size, 1]` around each case's center; arguments as `open_msd_slices`."""
    return _source(task, split, size, data_dir, None, spacing, channel, window, split_seed, slices=False,
                   keep_empty=True)


def read_task(root: Path) -> MsdTask:
    """Reads dataset.json; raises ValueError, naming it, where something is missing."""
    path = root / 'dataset.json'
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}: {root} is no folder of a Decathlon task')
    try:
        content = json.loads(files.read_text(path))
        labels = {int(number): str(name) for number, name in content['labels'].items()}
        modalities = tuple(str(name) for _, name in sorted(content['modality'].items()))
        cases = tuple((root / case['image'], root / case['label']) for case in content['training'])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or no Decathlon dataset.json, which has 'labels', 'modality' and "
                         f"'training' ({error!r})") from error
    if sorted(labels) != list(range(len(labels))) or len(labels) < 2 or not cases:
        raise ValueError(f'{path}: labels {sorted(labels)} and {len(cases)} cases; labels must be 0, 1, ... and '
                         'there must be cases')
    return MsdTask(root, tuple(labels[number] for number in range(len(labels))), modalities, cases)


def check_spacing(spacing: tuple[float, ...], where: Any) -> None:
    """Raises ValueError, naming the file, for a spacing that no scanner writes: it would pass unseen."""
    values = np.asarray(spacing)
    fine = np.isfinite(values).all() and (values > 0).all() and values.max() <= LONGEST \
        and values.max() <= MOST_ANISOTROPIC * values.min()
    if len(values) != 3 or not fine:
        raise ValueError(f'{where}: spacing {tuple(spacing)} mm; expected three positive numbers up to '
                         f'{LONGEST:g}, the largest at most {MOST_ANISOTROPIC:g} times the smallest. Mend the '
                         'header (pixdim) of the file')


def resample(values: np.ndarray, factors: tuple[float, ...]) -> np.ndarray:
    """Resamples an array linearly to `round(factor * size)` per axis, pixels taken as areas.

    Where it shrinks the array is smoothed first, with sigma = (1/factor - 1) / 2 pixels [ours].
    """
    if all(round(factor * size) == size for factor, size in zip(factors, values.shape, strict=True)):
        return values.astype(np.float32)
    sigma = [max(0., (1 / factor - 1) / 2) for factor in factors]
    smooth = ndimage.gaussian_filter(values.astype(np.float32), sigma, mode='nearest')
    shape = [max(1, round(factor * size)) for factor, size in zip(factors, values.shape, strict=True)]
    exact = [new / old for new, old in zip(shape, values.shape, strict=True)]
    return np.asarray(ndimage.zoom(smooth, exact, order=1, mode='nearest', grid_mode=True))


def _source(task: str, split: str, size: int, data_dir: Directory, axis: int | None, spacing: float | None,
            channel: int, window: Window | str | None, split_seed: int, *, slices: bool,
            keep_empty: bool) -> ArraySource:
    files.check_split(split, SPLITS, task)
    if not isinstance(size, int):
        raise ValueError(f'size = {size} must be one number, the side of the square or cube that is cut out')
    if size < 1 or axis not in (None, 0, 1, 2) or (spacing is not None and not 0 < spacing <= LONGEST):
        raise ValueError(f'size = {size} must be positive, axis = {axis} one of 0, 1, 2, spacing = {spacing} in '
                         f'(0, {LONGEST:g}] mm')
    found = read_task(listing.place(task, data_dir, 'folder of a Decathlon task'))
    window = _window(window, found, channel)
    if spacing is None:
        spacing = float(np.median([_pixel(_spacing_of(image), axis, slices) for image, _ in found.cases]))
    rows = stratified_split(np.zeros(len(found.cases), int), seed=split_seed)[split]
    images, labels, groups, lost = [], [], [], 0
    for image, label in (found.cases[row] for row in rows):
        values, classes, zooms = _read_case(image, label, found, channel, window)
        along = _slice_axis(zooms, axis) if slices else None
        factors = tuple(1. if place == along else zoom / spacing for place, zoom in enumerate(zooms))
        values, classes, cut = _fitted(values, classes, factors, size, along)
        lost += cut
        chosen = np.ones(len(classes), bool) if keep_empty or not slices else classes.any(axis=(1, 2))
        images.append(values[chosen])
        labels.append(classes[chosen])
        groups += [image.name.split('.')[0]] * int(chosen.sum())
    if not groups:
        raise ValueError(f"{task}: split '{split}' of {len(found.cases)} cases holds no "
                         f'{"slices with labels" if slices else "cases"}')
    what = 'slices' if slices else 'volumes'
    notes = (f'Split by case from a seed; resampled to {spacing:g} mm, then cut or filled up with zeros to {size} '
             'pixels around the center.', f'{lost} labeled pixels lay outside and were cut off.',
             *(('Slices without a label were left out.',) if slices and not keep_empty else ()))
    return ArraySource(np.concatenate(images)[..., None], {'segmentation': np.concatenate(labels)},
                       name=f'msd:{Path(task).name}', split=split, class_names=found.class_names, groups=groups,
                       range_map=f'{window} to [0, 1], {what} at {spacing:g} mm', notes=notes)


def _read_case(image: Path, label: Path, task: MsdTask, channel: int,
               window: Window | str) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Image in [0, 1], classes and spacing of one case."""
    values, zooms = read_nifti(image, channel)
    raw, label_zooms = read_nifti(label)
    check_spacing(zooms, image)
    check_pair(values[..., None], raw, image, label)
    if not np.allclose(zooms, label_zooms, rtol=1e-2):
        raise ValueError(f'{label}: spacing {label_zooms} mm, but its image {image} has {zooms}')
    if (raw != np.round(raw)).any():
        raise ValueError(f'{label}: the mask holds fractions; labels are whole numbers')
    classes = classes_of(raw.astype(np.int64), {c: c for c in range(len(task.class_names))}, label)
    return windowed(values, window, image), classes, zooms


def _fitted(values: np.ndarray, classes: np.ndarray, factors: tuple[float, ...], size: int,
            along: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Resampled and cut: `[n, size, size]` twice (slices) or `[1, size, size, size]`; pixels cut off."""
    shares = [resample((classes == c).astype(np.float32), factors) for c in range(int(classes.max()) + 1)]
    classes, values = np.argmax(shares, axis=0).astype(np.uint8), np.clip(resample(values, factors), 0, 1)
    labeled = int((classes > 0).sum())
    for axis in range(3):
        if axis != along:
            values, classes = (_centered(array, size, axis) for array in (values, classes))
    cut = labeled - int((classes > 0).sum())
    if along is None:
        return values[None], classes[None], cut
    return np.moveaxis(values, along, 0), np.moveaxis(classes, along, 0), cut


def _centered(array: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Cut or filled up with zeros to `size` along `axis`, around the center."""
    excess = array.shape[axis] - size
    if excess >= 0:
        return np.take(array, np.arange(excess // 2, excess // 2 + size), axis=axis)
    pads = [(0, 0)] * array.ndim
    pads[axis] = (-excess // 2, -excess - -excess // 2)
    return np.pad(array, pads)


def _slice_axis(zooms: tuple[float, ...], axis: int | None) -> int:
    """The axis of largest spacing, the last of (nearly) equal ones, unless one is given."""
    return max(place for place in range(3) if zooms[place] >= .99 * max(zooms)) if axis is None else axis


def _spacing_of(path: Path) -> tuple[float, ...]:
    zooms = read_spacing(path)
    check_spacing(zooms, path)
    return zooms


def _pixel(zooms: tuple[float, ...], axis: int | None, slices: bool) -> float:
    """The spacing that a case proposes: within its slices, or of all axes."""
    along = _slice_axis(zooms, axis) if slices else None
    return float(np.median([zoom for place, zoom in enumerate(zooms) if place != along]))


def _window(window: Window | str | None, task: MsdTask, channel: int) -> Window | str:
    if not 0 <= channel < len(task.modalities):
        raise ValueError(f'{task.root}: no channel {channel}; there are {", ".join(task.modalities)}')
    if window is None and 'CT' in task.modalities[channel].upper():
        raise ValueError(f'{task.root} holds CT: give window=(center, width) in Hounsfield units, e.g. (40, 400) '
                         'for the abdomen')
    if window is None:
        return 'volume'
    if not (window == 'volume' if isinstance(window, str) else len(window) == 2 and window[1] > 0):
        raise ValueError(f"window = {window!r} must be (center, width) with width > 0, or 'volume'")
    return window
