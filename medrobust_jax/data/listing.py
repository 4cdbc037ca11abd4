"""Which file belongs to which class, split and patient: from folders or from a table.

Contents: `Entry`, `from_folders`, `from_table`, `class_names`, `choose`, `place`, `group_of`.

Folders are `class/file` or `split/class/file`; a table is a CSV with the columns file, label and
optionally split, group and slice. Where no split is given, one is made by class from a seed, and
files of one group stay together.

Example:

    entries = from_folders(root, ('.png', '.jpg'))
    train = choose(entries, 'train', split_seed=0)
"""
import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medrobust_jax.data import files
from medrobust_jax.data.splits import FRACTIONS, SPLITS, stratified_split


class Entry(NamedTuple):
    """One example on disk; `split`, `group` and `slice` are '' where nothing is said."""

    path: Path
    label: str
    split: str = ''
    group: str = ''
    slice: str = ''


def place(path: str, data_dir: str | os.PathLike[str] | None, kind: str) -> Path:
    """The file or folder `path`, as it stands or inside the data directory.

    Raises:
      FileNotFoundError: naming the places looked at.
    """
    directory = files.data_directory(data_dir)
    looked = [Path(path).expanduser(), *([directory / path] if directory else [])]
    for candidate in looked:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f'no {kind}; looked for ' + ' and '.join(map(str, looked)))


def from_folders(root: Path, suffixes: Sequence[str], group_pattern: str | None = None) -> list[Entry]:
    """Lists `root/class/*` or `root/split/class/*`, in the order of names.

    Args:
      root: the folder.
      suffixes: of the files to take, in lower case; others are passed over.
      group_pattern: a regular expression searched in the file's name; its first bracket (or the
        whole match) is the group, e.g. the patient.

    Raises:
      ValueError: when there are no such files, or a name lacks the group.
    """
    if not root.is_dir():
        raise FileNotFoundError(f'no folder {root}')
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    nested = [folder for folder in folders if folder.name in SPLITS]
    parents = [(folder.name, folder) for folder in nested] if nested else [('', root)]
    entries = [Entry(path, folder.name, split, group_of(path.name, group_pattern))
               for split, parent in parents
               for folder in sorted(parent.iterdir()) if folder.is_dir()
               for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes]
    if not entries:
        raise ValueError(f"{root} holds no files {', '.join(suffixes)} in class/ or split/class/ folders "
                         f"(splits are called {', '.join(SPLITS)})")
    return entries


def from_table(table: Path) -> list[Entry]:
    """Reads a CSV with the columns file, label and optionally split, group and slice.

    Files are relative to the table's folder.

    Raises:
      ValueError: for missing columns, an empty table or a row without a file or label.
    """
    reader = csv.DictReader(io.StringIO(files.read_text(table)))
    columns = reader.fieldnames or []
    if 'file' not in columns or 'label' not in columns:
        raise ValueError(f"{table} has the columns {', '.join(columns) or 'none'}; it needs file and label, "
                         'and may have split, group and slice')
    names = ('file', *Entry._fields[1:])
    rows = [{name: (row.get(name) or '').strip() for name in names} for row in reader]
    if not rows:
        raise ValueError(f'{table} holds no rows')
    for number, row in enumerate(rows, start=2):
        if not row['file'] or not row['label'] or row['split'] not in ('', *SPLITS):
            raise ValueError(f"{table}, line {number}: file '{row['file']}', label '{row['label']}', split "
                             f"'{row['split']}'; file and label must be given, split one of {', '.join(SPLITS)}")
    return [Entry(table.parent / row.pop('file'), **row) for row in rows]


def class_names(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The classes over all splits, numbers in their order, words in the alphabet's."""
    labels = {entry.label for entry in entries}
    return tuple(sorted(labels, key=int) if all(map(str.isdecimal, labels)) else sorted(labels))


def choose(entries: Sequence[Entry], split: str, *, split_seed: int = 0,
           val_fraction: float = 0.) -> list[Entry]:
    """The entries of one split.

    Args:
      entries: all of them, with a split each, or none with one.
      split: 'train', 'val' or 'test'.
      split_seed: of the split, where entries have none: 70 % train, 10 % val, 20 % test.
      val_fraction: where entries have splits but no 'val', the part of 'train' that becomes it.

    Raises:
      ValueError: for an unknown or absent split, or entries of which only some have one.
    """
    files.check_split(split, SPLITS, 'a listing')
    present = {entry.split for entry in entries}
    if '' in present and len(present) > 1:
        raise ValueError('some files have a split and some have none; give all or none')
    if '' in present:
        return [entries[row] for row in _rows(entries, split_seed)[split]]
    if 'val' not in present and val_fraction > 0 and split != 'test':
        train = [entry for entry in entries if entry.split == 'train']
        rows = _rows(train, split_seed, (1 - val_fraction, val_fraction, 0.))
        return [train[row] for row in rows[split]]
    if split not in present:
        raise ValueError(f"no split '{split}': there are {', '.join(sorted(present))}; val_fraction=0.1 takes "
                         "a 'val' out of 'train'")
    return [entry for entry in entries if entry.split == split]


def _rows(entries: Sequence[Entry], seed: int,
          fractions: tuple[float, ...] = FRACTIONS) -> dict[str, np.ndarray]:
    names = class_names(entries)
    labels = np.asarray([names.index(entry.label) for entry in entries])
    groups = np.asarray([entry.group or str(entry.path) for entry in entries])
    return stratified_split(labels, seed=seed, fractions=fractions, groups=groups)


def group_of(name: str, pattern: str | None) -> str:
    """The first bracket of `pattern` (or the whole match) in a file name, '' without a pattern.

    Raises:
      ValueError: where the name lacks it.
    """
    if pattern is None:
        return ''
    match = re.search(pattern, name)
    if match is None:
        raise ValueError(f"group_pattern '{pattern}' is not found in the file name {name}")
    group = match.group(1) if match.groups() else match.group(0)
    if not group:
        raise ValueError(f"group_pattern '{pattern}' finds nothing but empty text in the file name {name}")
    return group
