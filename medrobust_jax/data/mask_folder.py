"""Folders of images with a folder of masks: users' own, ISIC-2017, COVID-QU-Ex lungs.

Contents: `open_mask_folder`, `open_isic2017`, `open_covid_lungs`, `pairs`, `read_mask`.

A mask has the name of its image, maybe with a suffix. Without `class_values` masks hold 0 and one of 1 and
255 (two classes), or the numbers of the classes (more). Images and masks are read one pair at a time, so
that large photographs fit into memory once `size` is given.

Example:

    source = open_mask_folder('~/lesions', 'train', size=128)      # ~/lesions/images/a.jpg, ~/lesions/masks/a.png
    source = open_mask_folder('~/scans', 'test', size=64, group_pattern=r'patient(\\d+)_')

References:
  Codella et al., Skin Lesion Analysis Toward Melanoma Detection, ISBI 2018 (ISIC-2017); Tahir et al.,
  COVID-19 Infection Localization and Severity Grading from Chest X-ray Images, Comput. Biol. Med. 2021.
"""
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from medrobust_jax.data import files, listing
from medrobust_jax.data.image_folder import SUFFIXES, read_image
from medrobust_jax.data.masks import check_pair, classes_of, resize_masks
from medrobust_jax.data.resize import Size, resize_images
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS

Directory = str | os.PathLike[str] | None


class Pair(NamedTuple):
    """An image and its mask on disk; `split` and `group` are '' where nothing is said."""

    image: Path
    mask: Path
    split: str = ''
    group: str = ''


def open_mask_folder(path: str, split: str = 'train', *, data_dir: Directory = None, size: Size | None = None,
                     class_names: Sequence[str] = ('background', 'foreground'),
                     class_values: Mapping[int, int] | None = None, images: str = 'images', masks: str = 'masks',
                     mask_suffix: str = '', channels: int = 3, group_pattern: str | None = None,
                     split_seed: int = 0, val_fraction: float = 0.) -> ArraySource:
    """One split of a folder `images/*` and `masks/*`, or of folders `split/images/*` and `split/masks/*`.

    Args:
      path: the folder that holds the above.
      split: 'train', 'val' or 'test'.
      data_dir: where a relative path is also looked for; None reads the environment.
      size: resize both to this; required where images differ in size.
      class_names: the background's first.
      class_values: gray value in a mask -> class; None is described above.
      images: the name of the images' folder.
      masks: the name of the masks' folder.
      mask_suffix: what follows the image's name in that of its mask, e.g. '_segmentation'.
      channels: 1 converts to grey, 3 to RGB.
      group_pattern: a regular expression searched in the image's file name; its first bracket (or the whole
        match) is the patient. Patients stay in one split; a name without one is refused.
      split_seed: of a split made here, 70/10/20 %.
      val_fraction: where there are folders for splits but none for 'val', the part of 'train' it becomes.

    Raises:
      FileNotFoundError: when a folder is absent.
      ValueError: naming the file: an image without a mask or the reverse, sizes that differ, a label
        that is not known, a damaged file, a name without its patient.
    """
    root = listing.place(path, data_dir, 'folder of images and masks')
    nested = [name for name in SPLITS if (root / name / images).is_dir()]
    found = [pair for name in nested or [''] for pair in
             pairs(root / name / images, root / name / masks, mask_suffix=mask_suffix, split=name,
                   group_pattern=group_pattern)]
    return _source(found, split, name=f'masks:{path}', class_names=class_names, class_values=class_values,
                   size=size, channels=channels, split_seed=split_seed, val_fraction=val_fraction,
                   has_groups=group_pattern is not None)


def open_isic2017(split: str = 'train', *, data_dir: Directory = None, size: Size | None = None) -> ArraySource:
    """One split of ISIC-2017's lesion segmentation: 2000 train, 150 val, 600 test, as the archives unpack.

    The folders are `ISIC-2017_<Part>_Data` and `ISIC-2017_<Part>_Part1_GroundTruth` in `DATA_DIR/isic2017`,
    with the parts Training, Validation and Test_v2. Arguments as `open_mask_folder`.
    """
    files.check_split(split, SPLITS, 'isic2017')
    part = {'train': 'Training', 'val': 'Validation', 'test': 'Test_v2'}[split]
    root = listing.place('isic2017', data_dir, 'folder of ISIC-2017')
    found = pairs(root / f'ISIC-2017_{part}_Data', root / f'ISIC-2017_{part}_Part1_GroundTruth',
                  mask_suffix='_segmentation', split=split, passed_over='_superpixels')
    return _source(found, split, name='isic2017', class_names=('background', 'lesion'), size=size, channels=3)


def open_covid_lungs(split: str = 'train', *, data_dir: Directory = None, size: Size | None = None) -> ArraySource:
    """One split of COVID-QU-Ex's lung masks, as the archive unpacks.

    `DATA_DIR/covid_qu_ex/Lung Segmentation Data/{Train,Val,Test}/<class>/{images,lung masks}`; the archive's
    doubled folder is found too. There are no patient ids. Arguments as `open_mask_folder`.
    """
    files.check_split(split, SPLITS, 'covid_lungs')
    root = listing.place('covid_qu_ex', data_dir, 'folder of COVID-QU-Ex')
    for _ in range(2):
        deeper = root / 'Lung Segmentation Data'
        root = deeper if deeper.is_dir() else root
    classes = sorted(folder for folder in (root / split.capitalize()).glob('*') if folder.is_dir())
    if not classes:
        raise FileNotFoundError(f'no folders of classes in {root / split.capitalize()}')
    found = [pair for folder in classes for pair in pairs(folder / 'images', folder / 'lung masks', split=split)]
    return _source(found, split, name='covid_lungs', class_names=('background', 'lung'), size=size, channels=1)


def pairs(images: Path, masks: Path, *, mask_suffix: str = '', split: str = '', group_pattern: str | None = None,
          passed_over: str | None = None) -> list[Pair]:
    """Images and masks of two folders, in the order of the images' names.

    Raises:
      FileNotFoundError: for a folder that is absent.
      ValueError: for an image without a mask, a mask without an image, or no images at all.
    """
    names = {}
    for folder in (images, masks):
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {folder}')
        names[folder] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in SUFFIXES or (passed_over and path.stem.endswith(passed_over)):
                continue
            if path.stem in names[folder]:
                raise ValueError(f'{path} and {names[folder][path.stem].name} have one name: which one is meant?')
            names[folder][path.stem] = path
    if not names[images]:
        raise ValueError(f"{images} holds no files {', '.join(SUFFIXES)}")
    without = [path for stem, path in names[images].items() if stem + mask_suffix not in names[masks]]
    if without:
        raise ValueError(f'{without[0]} has no mask {without[0].stem}{mask_suffix}.* in {masks} '
                         f'({len(without)} such images)')
    known = {stem + mask_suffix for stem in names[images]}
    alone = [path for stem, path in names[masks].items() if stem not in known]
    if alone:
        raise ValueError(f'{alone[0]} has no image in {images} ({len(alone)} such masks)')
    return [Pair(path, names[masks][stem + mask_suffix], split, listing.group_of(path.name, group_pattern))
            for stem, path in names[images].items()]


def read_mask(path: Path) -> np.ndarray:
    """A mask's gray values `[H, W]`, upright as images are; the indices of a palette; color must be gray."""
    try:
        with Image.open(path) as image:
            values = np.asarray(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise ValueError(f'{path} is truncated, damaged or no image ({error})') from error
    values = values.astype(np.uint8) if values.dtype == bool else values
    if values.ndim == 3:
        gray = values[..., :1] if values.shape[-1] == 2 else values[..., :3]
        if (gray != gray[..., :1]).any():
            raise ValueError(f'{path}: a mask in color; save the numbers of the classes as gray values')
        values = gray[..., 0]
    return values


def _source(found: Sequence[Pair], split: str, *, name: str, class_names: Sequence[str], size: Size | None,
            channels: int, class_values: Mapping[int, int] | None = None, split_seed: int = 0,
            val_fraction: float = 0., has_groups: bool = False) -> ArraySource:
    entries = [listing.Entry(pair.image, '', pair.split, pair.group) for pair in found]
    chosen = listing.choose(entries, split, split_seed=split_seed, val_fraction=val_fraction)
    mask_of = {pair.image: pair.mask for pair in found}
    if class_values is None:
        class_values = {0: 0, 1: 1, 255: 1} if len(class_names) == 2 else {c: c for c in range(len(class_names))}
    images, masks = [], []
    for entry in chosen:
        image = read_image(entry.path, channels)
        mask = classes_of(read_mask(mask_of[entry.path]), class_values, mask_of[entry.path])
        check_pair(image, mask, entry.path, mask_of[entry.path])
        if image.dtype != np.uint8:
            raise ValueError(f'{entry.path} has more than 8 bits; convert it to 8')
        if size is None and images and image.shape != images[0].shape:
            raise ValueError(f'{entry.path} is {image.shape[:2]} and {chosen[0].path} {images[0].shape[:2]} '
                             'pixels; give size= to resize them')
        images.append(image if size is None else resize_images(image[None], size)[0])
        masks.append(mask if size is None else resize_masks(mask[None], size)[0])
    if not images:
        raise ValueError(f"{name}: no images in split '{split}'")
    empty = sum(not mask.any() for mask in masks)
    notes = [f'{empty} of {len(masks)} masks hold background alone'] if empty else []
    return ArraySource(np.stack(images), {'segmentation': np.stack(masks)}, name=name, split=split, notes=notes,
                       class_names=class_names, groups=[entry.group for entry in chosen] if has_groups else None,
                       range_map='uint8 / 255' + ('' if size is None else f', resized to {size}'))
