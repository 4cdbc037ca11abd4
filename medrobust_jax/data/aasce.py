"""AASCE 2019: spinal X-rays with the corners of 17 vertebrae, and the angles computed from them.

Contents: `POINT_NAMES`, `Row`, `locate`, `read_tables`, `split_rows`, `frame`, `open_aasce`.

Two layouts are read: the public one (`boostnet_labeldata/` with `data/training`, `data/test` and
`labels/training`, `labels/test`, each with filenames.csv, landmarks.csv) and a compact one
(`aasce_spine/` with `train/`, `test/`, `<split>_files.csv` with the columns file and group,
`<split>_landmarks.csv`). Landmarks are 68 x and then 68 y, as fractions of the image's width and
height; per vertebra from T1 to L5 top left, top right, bottom left, bottom right.

Images have many sizes and shapes. They are scaled as a whole until they fit the size asked for, and
centered on black, so that pixels stay square and angles stay angles; `fit='stretch'` fills the size.

Known peculiarities: one training image has a landmark outside itself and is dropped; there are
several images per patient; some patients' numbers occur in both official splits (see the notes).

Example:

    source = open_aasce('train', size=(128, 64))
    source[0]['points'].shape                       # (68, 2)

References:
  Wu, Bailey, Rasoulinejad, Li, Automatic landmark estimation for adolescent idiopathic scoliosis
  assessment using BoostNet, MICCAI 2017; SpineWeb data set 16.
"""
import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from medrobust_jax.core.polygons import rasterize, spine_contour
from medrobust_jax.data import files
from medrobust_jax.data.resize import Size, resize_images, target_size
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS, stratified_split

_VERTEBRAE = (*(f'T{number}' for number in range(1, 13)), *(f'L{number}' for number in range(1, 6)))
POINT_NAMES = tuple(f'{vertebra} {corner}' for vertebra in _VERTEBRAE
                    for corner in ('top left', 'top right', 'bottom left', 'bottom right'))
FITS = ('pad', 'stretch')
_NEAR = .05  # as far outside the image is a slip of the hand, farther is another file format
_HOW = ("Save the public BoostNet label data (SpineWeb data set 16) as DATA_DIR/boostnet_labeldata, with "
        "data/training, data/test, labels/training and labels/test.")
_PUBLIC = {'train': 'training', 'test': 'test'}


class Row(NamedTuple):
    """One image on disk, its 68 landmarks `[68, 2]` as fractions, and its patient's number."""

    path: Path
    points: np.ndarray
    group: str


def locate(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of either layout; raises FileNotFoundError that says how to get it."""
    table = files.find_file('aasce', ['boostnet_labeldata/labels/training/landmarks.csv',
                                      'aasce_spine/train_landmarks.csv', 'train_landmarks.csv'],
                            data_dir=data_dir, how_to_get=_HOW)
    return table.parents[2] if table.name == 'landmarks.csv' else table.parent


def read_tables(root: Path, split: str) -> list[Row]:
    """The images of an official split, 'train' or 'test', in the order of the tables.

    Raises:
      ValueError: for tables that do not fit together, or landmarks that are not 68 finite pairs near
        the image, naming file and row.
    """
    if (root / 'labels').is_dir():
        labels, folder = root / 'labels' / _PUBLIC[split], root / 'data' / _PUBLIC[split]
        table, listing = labels / 'landmarks.csv', labels / 'filenames.csv'
        names = [line.strip() for line in files.read_text(listing).splitlines() if line.strip()]
        groups = [_number_in(name) for name in names]
    else:
        folder, table, listing = root / split, root / f'{split}_landmarks.csv', root / f'{split}_files.csv'
        rows = list(csv.DictReader(io.StringIO(files.read_text(listing))))
        if not rows or not {'file', 'group'} <= set(rows[0]):
            raise ValueError(f'{listing} needs the columns file and group')
        for number, row in enumerate(rows, start=2):
            if not row['file'] or not row['group']:
                raise ValueError(f'{listing}, line {number}: a file and its group (the patient) are needed, not '
                                 f"{row['file']!r} and {row['group']!r}")
        names, groups = [row['file'] for row in rows], [row['group'] for row in rows]
    points = _landmarks(table)
    if len(points) != len(names):
        raise ValueError(f'{table} has {len(points)} rows and {listing} names {len(names)} files')
    return [Row(folder / name, place, group) for name, place, group in zip(names, points, groups, strict=True)]


def split_rows(root: Path, split: str, *, seed: int = 0, val_fraction: float = .15,
               drop_overlap: bool = False) -> tuple[list[Row], tuple[str, ...]]:
    """The usable images of one split, and notes on what was dropped or is peculiar.

    'val' is taken out of the official training images by patient. Arguments as `open_aasce`.
    """
    files.check_split(split, SPLITS, 'aasce')
    official = {name: read_tables(root, name) for name in _PUBLIC}
    rows = official['test' if split == 'test' else 'train']
    notes = ['Official test split; the validation split is taken from the training images by patient, by a seed.']
    both = sorted({row.group for row in official['train']} & {row.group for row in official['test']})
    if both:
        shared = {name: sum(row.group in both for row in official[name]) for name in official}
        notes.append(f"Patient numbers {', '.join(both)} occur in both official splits ({shared['train']} "
                     f"training and {shared['test']} test images); they may be the same people or not.")
    outside = [number for number, row in enumerate(rows) if not ((row.points >= 0) & (row.points <= 1)).all()]
    if outside:
        notes.append(f"Dropped {len(outside)} images with a landmark outside: "
                     f"{', '.join(f'row {number} ({rows[number].path.name})' for number in outside)}.")
    rows = [row for number, row in enumerate(rows) if number not in outside]
    if split != 'test':
        fractions = (1 - val_fraction, val_fraction, 0.)
        groups = np.asarray([row.group for row in rows])
        chosen = stratified_split(np.zeros(len(rows), int), seed=seed, fractions=fractions, groups=groups)[split]
        rows = [rows[number] for number in chosen]
        if both and drop_overlap:
            before, rows = len(rows), [row for row in rows if row.group not in both]
            notes.append(f'Dropped {before - len(rows)} images of these patients from {split}.')
    return rows, tuple(notes)


def frame(path: Path, points: np.ndarray, size: tuple[int, int], fit: str) -> tuple[np.ndarray, np.ndarray]:
    """An image as uint8 `[H, W]` at `size`, and its points as fractions of that frame.

    Raises:
      ValueError: for a file that is no readable image.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert('L'))
    except (OSError, SyntaxError) as error:
        raise ValueError(f'{path} is no readable image ({error})') from error
    height, width = size
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    inner = size
    if fit == 'pad':
        inner = max(1, round(scale * pixels.shape[0])), max(1, round(scale * pixels.shape[1]))
    small = resize_images(pixels[None, ..., None], inner)[0, ..., 0]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas = np.zeros(size, np.uint8)
    canvas[top:top + inner[0], left:left + inner[1]] = small
    placed = (points * (inner[1], inner[0]) + (left, top)) / (width, height)
    return canvas, placed.astype(np.float32)


def open_aasce(split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
               size: Size | None = None, fit: str = 'pad', mask: bool = False, split_seed: int = 0,
               val_fraction: float = .15, drop_overlap: bool = False) -> ArraySource:
    """One split of the spinal X-rays, with 'points' `[68, 2]` and, on request, the spine's mask.

    Args:
      split: 'train', 'val' or 'test'.
      data_dir: where the folder is; None reads the environment.
      size: (height, width), or one number for both; None means (128, 64).
      fit: 'pad' keeps proportions, 'stretch' does not and makes angles meaningless.
      mask: whether to add 'segmentation', 1 inside the contour through the landmarks.
      split_seed: of the validation split.
      val_fraction: the part of the training images that becomes 'val', by patient.
      drop_overlap: leave patients whose numbers also occur in the test split out of 'train' and 'val'.

    Raises:
      FileNotFoundError: when the folder is absent.
      ValueError: for an unknown split or fit, or damaged files.
    """
    if fit not in FITS:
        raise ValueError(f"fit = '{fit}' must be one of {', '.join(FITS)}")
    pair = target_size((128, 64) if size is None else size)
    rows, notes = split_rows(locate(data_dir), split, seed=split_seed, val_fraction=val_fraction,
                             drop_overlap=drop_overlap)
    if not rows:
        raise ValueError(f"aasce/{split}: no image is left; {' '.join(notes)}")
    framed = [frame(row.path, row.points, pair, fit) for row in rows]
    points = np.stack([place for _, place in framed])
    targets = {'points': points}
    if mask:
        targets['segmentation'] = rasterize(points[:, spine_contour(len(POINT_NAMES))], pair).astype(np.int32)
    words = 'scaled to fit and centered on black' if fit == 'pad' else 'stretched'
    return ArraySource(np.stack([image for image, _ in framed])[..., None], targets, name='aasce', split=split,
                       class_names=POINT_NAMES, groups=np.asarray([row.group for row in rows]),
                       range_map=f'uint8 / 255, {words}, {pair[0]}x{pair[1]}', notes=notes)


def _landmarks(table: Path) -> list[np.ndarray]:
    found = []
    for number, line in enumerate(line for line in files.read_text(table).splitlines() if line.strip()):
        values = _numbers(line.split(','))
        if len(values) != 2 * len(POINT_NAMES) or not np.isfinite(values).all():
            raise ValueError(f'{table}, row {number}: expected {2 * len(POINT_NAMES)} finite numbers, 68 x and '
                             f'then 68 y; found {len(values)}')
        if values.min() < -_NEAR or values.max() > 1 + _NEAR:
            raise ValueError(f'{table}, row {number}: values in [{values.min():g}, {values.max():g}]; landmarks '
                             'are fractions of width and height')
        found.append(np.stack([values[:len(POINT_NAMES)], values[len(POINT_NAMES):]], axis=1))
    return found


def _numbers(texts: Sequence[str]) -> np.ndarray:
    try:
        return np.asarray([float(text) for text in texts])
    except ValueError:
        return np.full(len(texts), np.nan)


def _number_in(name: str) -> str:
    """The patient's number in a public file name, the last one: 'sunhl-1th-02-Jan-2017-162 A AP.jpg' is 162."""
    found = re.findall(r'\d+', Path(name).stem)
    if not found:
        raise ValueError(f"file name '{name}' lacks the patient's number")
    return found[-1]
