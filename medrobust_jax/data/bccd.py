"""BCCD: 364 blood smears of 640 x 480 pixels with boxes around red cells, white cells and platelets.

Contents: `CLASS_NAMES`, `locate`, `open_bccd`.

The splits are the official ones: 205 train, 87 val, 72 test. Two boxes of red cells have no area (one each in
BloodImage_00338 and BloodImage_00343); they are dropped, and `info.notes` counts them.

Example:

    source = open_bccd('train', size=(120, 160))
    source[0]['image'].shape, source[0]['boxes'].shape

References:
  Shenggan and others, BCCD Dataset, MIT license, https://github.com/Shenggan/BCCD_Dataset.
"""
import os
from pathlib import Path

from medrobust_jax.data import files
from medrobust_jax.data.boxes import pack
from medrobust_jax.data.resize import Size
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS
from medrobust_jax.data.voc import read_split

CLASS_NAMES = ('RBC', 'WBC', 'Platelets')
_HOW = ('Copy the folder BCCD of https://github.com/Shenggan/BCCD_Dataset (MIT license) to DATA_DIR/bccd/BCCD: '
        'Annotations, ImageSets and JPEGImages.')


def locate(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder with Annotations, ImageSets and JPEGImages; raises FileNotFoundError that says how to get it."""
    where = ['bccd/BCCD', 'bccd', 'BCCD', 'BCCD_Dataset/BCCD']
    found = files.find_file('bccd', [f'{folder}/ImageSets/Main/train.txt' for folder in where], data_dir=data_dir,
                            how_to_get=_HOW)
    return found.parents[2]


def open_bccd(split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
              size: Size | None = None) -> ArraySource:
    """One split of BCCD, RGB, with 'boxes', 'box_labels' and 'box_mask'.

    Args:
      split: 'train', 'val' or 'test'.
      data_dir: where the folder is; None reads the environment.
      size: resize to this; None keeps 480 x 640. Boxes are fractions of the image and stay.

    Raises:
      FileNotFoundError: when the folder or one of its files is absent.
      ValueError: for an unknown split or a damaged file, which is named.
    """
    files.check_split(split, SPLITS, 'bccd')
    images, objects, resized, notes = read_split(locate(data_dir), split, class_names=CLASS_NAMES, size=size,
                                                 drop_empty=True)
    return ArraySource(images, pack(objects), name='bccd', split=split, class_names=CLASS_NAMES,
                       range_map=f'uint8 / 255{resized}', notes=notes)
