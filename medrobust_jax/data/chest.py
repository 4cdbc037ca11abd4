"""ChestX-ray14: 112,120 frontal chest X-rays of 30,805 patients with 14 findings mined from reports.

Contents: `FINDINGS`, `Row`, `read_table`, `read_list`, `split_rows`, `open_chest`.

The public layout is expected in `DATA_DIR/chestxray14/`: `Data_Entry_2017.csv` (or `Data_Entry_2017_v2020.csv`),
`train_val_list.txt`, `test_list.txt`, and the PNGs in `images/` or in `images_001/images/` ...
`images_012/images/`. The test split is the official one; validation patients are drawn from the training list by
a seed. Records carry the patient as 'group'.

All images of a split are held in memory, resized as they are read: at 64 pixels the training list takes
350 MB, at 224 pixels 4.3 GB.

Example:

    source = open_chest('val', size=64)
    source[0]['findings']                          # int32 [14]

References:
  Wang et al., ChestX-ray8: Hospital-scale chest X-ray database and benchmarks, CVPR 2017, arXiv:1705.02315.
"""
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.data import files
from medrobust_jax.data.image_folder import read_image
from medrobust_jax.data.resize import Size, describe, resize_images
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS, stratified_split

FINDINGS = ('Atelectasis', 'Cardiomegaly', 'Effusion', 'Infiltration', 'Mass', 'Nodule', 'Pneumonia',
            'Pneumothorax', 'Consolidation', 'Edema', 'Emphysema', 'Fibrosis', 'Pleural_Thickening', 'Hernia')
_NOTHING = 'No Finding'
_COLUMNS = ('Image Index', 'Finding Labels', 'Patient ID')
_HOW = ('Download the NIH ChestX-ray14 archives, the table and both lists '
        '(https://nihcc.app.box.com/v/ChestXray-NIHCC) into DATA_DIR/chestxray14.')


class Row(NamedTuple):
    """One line of the table."""

    file: str
    findings: tuple[int, ...]  # 0 or 1 for each of `FINDINGS`
    patient: str


def read_table(path: Path) -> dict[str, Row]:
    """The table by file name.

    Raises:
      ValueError: naming the line, for missing columns, unknown findings, an absent patient or a file twice.
    """
    reader = csv.DictReader(io.StringIO(files.read_text(path)))
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
    rows: dict[str, Row] = {}
    for line, entry in enumerate(reader, start=2):
        file, labels, patient = ((entry[name] or '').strip() for name in _COLUMNS)
        if not file or not patient or file in rows:
            raise ValueError(f"{path}, line {line}: file '{file}' of patient '{patient}'; both must be given, "
                             'and a file once')
        rows[file] = Row(file, _findings(labels, f'{path}, line {line}'), patient)
    return rows


def read_list(path: Path, table: dict[str, Row]) -> list[Row]:
    """The table's rows that a list of file names gives, in its order.

    Raises:
      ValueError: naming the line, for a file that the table lacks.
    """
    names = [line.strip() for line in files.read_text(path).splitlines()]
    for line, name in enumerate(names, start=1):
        if name and name not in table:
            raise ValueError(f"{path}, line {line}: '{name}' is not in the table of findings")
    return [table[name] for name in names if name]


def split_rows(train_val: Sequence[Row], test: Sequence[Row], split: str, *, val_fraction: float = .1,
               split_seed: int = 0) -> tuple[list[Row], tuple[str, ...]]:
    """The rows of one split, and what to know of the splits.

    Args:
      train_val: rows of the official training list.
      test: rows of the official test list.
      split: 'train', 'val' or 'test'.
      val_fraction: the part of the training list that becomes 'val', whole patients, with and without findings
        in the same proportion.
      split_seed: of that choice.
    """
    shared = {row.patient for row in train_val} & {row.patient for row in test}
    notes = [f'{len(shared)} patients occur in both official lists.'] if shared else []
    if split == 'test':
        return list(test), tuple(notes)
    ill = np.asarray([any(row.findings) for row in train_val], int)
    patients = np.asarray([row.patient for row in train_val])
    fractions = (1 - val_fraction, val_fraction, 0.)
    chosen = stratified_split(ill, seed=split_seed, fractions=fractions, groups=patients)
    notes.append(f'Validation: {val_fraction:.0%} of the training list, whole patients, from a seed.')
    return [train_val[row] for row in chosen[split]], tuple(notes)


def open_chest(split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None, size: Size | None = 64,
               val_fraction: float = .1, split_seed: int = 0) -> ArraySource:
    """One split of ChestX-ray14, with 14 findings per image.

    Args:
      split: 'train', 'val' or 'test'.
      data_dir: where the folder chestxray14 is; None reads the environment.
      size: resize to this; None keeps 1024 pixels, which fits no ordinary memory.
      val_fraction: see `split_rows`.
      split_seed: see `split_rows`.

    Raises:
      FileNotFoundError: when the table, a list or an image is absent.
      ValueError: for an unknown split, or a table, list or image that is damaged; file and line are named.
    """
    files.check_split(split, SPLITS, 'chestxray14')
    if not 0 < val_fraction < 1:
        raise ValueError(f'val_fraction = {val_fraction} must lie in (0, 1)')
    tables = ['Data_Entry_2017_v2020.csv', 'Data_Entry_2017.csv']
    table_path, train_path, test_path = (
        files.find_file('chestxray14', [f'{folder}{name}' for folder in ('chestxray14/', 'ChestX-ray14/', '')
                                        for name in names], data_dir=data_dir, how_to_get=_HOW)
        for names in (tables, ['train_val_list.txt'], ['test_list.txt']))
    table = read_table(table_path)
    rows, notes = split_rows(read_list(train_path, table), read_list(test_path, table), split,
                             val_fraction=val_fraction, split_seed=split_seed)
    images, resized = _read_images(rows, table_path.parent, size)
    return ArraySource(images, {'findings': np.asarray([row.findings for row in rows])}, name='chestxray14',
                       split=split, class_names=FINDINGS, groups=np.asarray([row.patient for row in rows]),
                       range_map=f'uint8 / 255{resized}', notes=notes)


def _findings(labels: str, where: str) -> tuple[int, ...]:
    names = [name.strip() for name in labels.split('|')]
    for name in names:
        if name not in (*FINDINGS, _NOTHING):
            did_you_mean(name, (*FINDINGS, _NOTHING), f'finding in {where}:')
    if _NOTHING in names and len(names) > 1:
        raise ValueError(f"{where}: '{labels}' says both that there is a finding and that there is none")
    return tuple(int(finding in names) for finding in FINDINGS)


def _read_images(rows: Sequence[Row], root: Path, size: Size | None) -> tuple[np.ndarray, str]:
    """All images uint8 `[N, H, W, 1]`, resized one by one, and what resizing did."""
    folders = [root / 'images', *sorted(root.glob('images_*/images')), *sorted(root.glob('images_*')), root]
    images, words = [], ''
    for row in rows:
        path = next((folder / row.file for folder in folders if (folder / row.file).is_file()), None)
        if path is None:
            raise FileNotFoundError(f"no image '{row.file}' of patient {row.patient} in {root}/images or "
                                    f'{root}/images_*/images. {_HOW}')
        image = read_image(path, 1)
        if image.dtype != np.uint8:
            raise ValueError(f'{path} is {image.dtype}, not an image of 8 bits')
        words = words or describe(image.shape, size)
        images.append(image if size is None else resize_images(image[None], size)[0])
        if images[-1].shape != images[0].shape:
            raise ValueError(f'{path} is {image.shape[:2]} pixels, others are {images[0].shape[:2]}: give size=')
    if not images:
        raise ValueError(f'{root}: no images in this split')
    return np.stack(images), words
