"""Kermany's retinal OCT scans: CNV, DME, drusen, normal; patients from the file names.

Contents: `CLASS_NAMES`, `locate`, `choose`, `resize_and_crop`, `open_oct2017`.

The public layout is expected in `DATA_DIR/OCT2017/`: `{train,val,test}/{CNV,DME,DRUSEN,NORMAL}/` with files
`CLASS-PATIENT-NUMBER.jpeg`; the archive's doubled folder is found too. The public 'val' has 32 images, too few to
choose a checkpoint by, and is passed over: validation patients are drawn from 'train' by a seed [ours]. 'test' is
the public one. Records carry the patient as 'group'.

All images of a split are held in memory, resized as they are read: at 224 pixels the 108,312 training images take
5.4 GB, at 64 pixels 0.4 GB.

Example:

    source = open_oct2017('val', size=64)
    source.info.notes                          # how many patients of 'train' are in 'test' too

References:
  Kermany et al., Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning, Cell 172,
  2018; the data: Mendeley Data, doi:10.17632/rscbjbr9sj, CC BY 4.0.
"""
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medrobust_jax.data import files, listing
from medrobust_jax.data.image_folder import SUFFIXES, read_image
from medrobust_jax.data.resize import resize_images
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS

CLASS_NAMES = ('choroidal neovascularization', 'diabetic macular edema', 'drusen', 'normal')
FOLDERS = ('CNV', 'DME', 'DRUSEN', 'NORMAL')  # in label order
_PATIENT = r'^[A-Z]+-(\d+)-\d+\.'  # in CNV-1016042-1.jpeg
_HOW = ('Get OCT2017 from Mendeley Data, doi:10.17632/rscbjbr9sj (CC BY 4.0), and unpack it as '
        'DATA_DIR/OCT2017/{train,val,test}/{CNV,DME,DRUSEN,NORMAL}.')


def locate(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder that holds 'train' and 'test'; raises FileNotFoundError that says how to get it."""
    directory = files.data_directory(data_dir)
    places = [directory / name for name in ('OCT2017', 'OCT2017/OCT2017', 'oct2017')] if directory else []
    for place in places:
        if (place / 'train').is_dir() and (place / 'test').is_dir():
            return place
    looked = ' and '.join(map(str, places)) or f'nowhere: give data_dir or set {files.DATA_VARIABLE}'
    raise FileNotFoundError(f"no data set 'oct2017'; looked for the folders train and test in {looked}. {_HOW}")


def choose(root: Path, split: str, *, val_fraction: float = .1,
           split_seed: int = 0) -> tuple[list[listing.Entry], tuple[str, ...]]:
    """The files of one split, and notes.

    Args:
      root: as `locate` finds it.
      split: 'train', 'val' or 'test'.
      val_fraction: of the training images that become validation, whole patients; in (0, 1).
      split_seed: of that choice.

    Raises:
      ValueError: for a fraction out of range, a folder that is no class, or a file name without a patient.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f'val_fraction = {val_fraction} must lie in (0, 1)')
    entries = [entry for entry in listing.from_folders(root, SUFFIXES, _PATIENT) if entry.split != 'val']
    if unknown := {entry.label for entry in entries} - set(FOLDERS):
        raise ValueError(f"{root} holds the classes {', '.join(sorted(unknown))}; known are {', '.join(FOLDERS)}")
    patients = {name: {entry.group for entry in entries if entry.split == name} for name in ('train', 'test')}
    notes = [f"Validation: {val_fraction:.0%} of 'train', whole patients, from a seed; not the public 'val'."]
    if shared := patients['train'] & patients['test']:
        notes.append(f"{len(shared)} of {len(patients['test'])} patients of 'test' occur in the public 'train'.")
    return listing.choose(entries, split, split_seed=split_seed, val_fraction=val_fraction), tuple(notes)


def resize_and_crop(image: np.ndarray, *, shorter_side: int, size: int) -> np.ndarray:
    """Resizes `[H, W, C]` to a shorter side, keeping proportions, and takes the middle `[size, size, C]`."""
    height, width = image.shape[:2]
    scale = shorter_side / min(height, width)
    resized = resize_images(image[None], (max(round(height * scale), size), max(round(width * scale), size)))[0]
    top, left = ((length - size) // 2 for length in resized.shape[:2])
    return resized[top:top + size, left:left + size]


def open_oct2017(split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None, size: int = 224,
                 shorter_side: int | None = None, val_fraction: float = .1, split_seed: int = 0) -> ArraySource:
    """One split of OCT2017, grey.

    Args:
      split: 'train', 'val' or 'test'.
      data_dir: where the folder OCT2017 is; None reads the environment.
      size: of the square that is cut from the middle.
      shorter_side: what images are resized to before, at least `size`; None: 8/7 of it, which is 256 for 224, as
        is customary and in the published semi-supervised training [code].
      val_fraction: see `choose`.
      split_seed: see `choose`.

    Raises:
      FileNotFoundError: when the folder is absent.
      ValueError: for an unknown split, sizes that do not fit, or a damaged file, by name.
    """
    files.check_split(split, SPLITS, 'oct2017')
    shorter_side = round(size * 8 / 7) if shorter_side is None else shorter_side
    if not isinstance(size, int) or not 1 <= size <= shorter_side:
        raise ValueError(f'size = {size} must be one number, positive and at most shorter_side = {shorter_side}')
    chosen, notes = choose(locate(data_dir), split, val_fraction=val_fraction, split_seed=split_seed)
    return ArraySource(
        _read(chosen, shorter_side, size), [FOLDERS.index(entry.label) for entry in chosen], name='oct2017',
        split=split, class_names=CLASS_NAMES, groups=np.asarray([entry.group for entry in chosen]),
        range_map=f'uint8 / 255, shorter side resized to {shorter_side}, middle {size}x{size}', notes=notes)


def _read(entries: Sequence[listing.Entry], shorter_side: int, size: int) -> np.ndarray:
    """All images uint8 `[N, size, size, 1]`."""
    images = np.empty((len(entries), size, size, 1), np.uint8)
    for row, entry in enumerate(entries):
        image = read_image(entry.path, 1)
        if image.dtype != np.uint8:
            raise ValueError(f'{entry.path} is {image.dtype}, not an image of 8 bits')
        images[row] = resize_and_crop(image, shorter_side=shorter_side, size=size)
    return images
