"""EAD-2019: endoscopic frames with boxes around seven kinds of artifacts.

Contents: `CLASS_NAMES`, `read_boxes`, `locate`, `open_ead`.

Expected in `DATA_DIR/ead2019/` are the frames (jpg, png) with a text file of the same name beside each, at any
depth, and optionally `class_list.txt`, one name per line. A line of a text file is `class x y width height`: the
class's number, the box's center and sides as fractions of the frame. A frame with an empty file has no object;
one without a file is refused. There is no official validation split and there are no patients in the public
names: the split is made from a seed, by each frame's most frequent class. Near-equal frames of one video may so
fall into different splits; `info.notes` says so.

Example:

    source = open_ead('train', size=128)

References:
  Ali et al., Endoscopy artifact detection (EAD 2019) challenge dataset, arXiv:1905.03209.
"""
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medrobust_jax.data import files
from medrobust_jax.data.boxes import Objects, clean, pack
from medrobust_jax.data.image_folder import SUFFIXES, read_image, stack
from medrobust_jax.data.resize import Size
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS, stratified_split

CLASS_NAMES = ('specularity', 'saturation', 'artifact', 'blur', 'contrast', 'bubbles', 'instrument')
_CLASS_LIST = 'class_list.txt'
_HOW = ('Register at the EAD-2019 challenge (https://ead2019.grand-challenge.org) and put the training frames, '
        'with their text files, into DATA_DIR/ead2019.')


def locate(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder with the frames; raises FileNotFoundError that says how to get them."""
    directory = files.data_directory(data_dir)
    if directory is None:
        raise FileNotFoundError("'ead2019' needs a data directory: give data_dir or set the environment variable "
                                f'{files.DATA_VARIABLE}. {_HOW}')
    looked = [directory / name for name in ('ead2019', 'EAD2019')]
    for folder in looked:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no data set 'ead2019'; looked for {' and '.join(map(str, looked))}. {_HOW}")


def read_boxes(path: Path, num_classes: int, *, drop_empty: bool = False) -> tuple[Objects, int, int]:
    """The objects of one text file, how many were dropped, and how many clipped (see `boxes.clean`).

    Raises:
      ValueError: naming file and line, for a line that is not five numbers or names no class.
    """
    labels, boxes = [], []
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            label, *center_and_sides = map(float, line.split())
            x, y, width, height = center_and_sides
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: '{line.strip()}' is not 'class x y width height'") from error
        if label not in range(num_classes):
            raise ValueError(f'{path}, line {number}: class {label:g} outside 0..{num_classes - 1}')
        labels.append(int(label))
        boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return clean(np.asarray(boxes, float), np.asarray(labels, int), where=str(path), drop_empty=drop_empty)


def open_ead(split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None, size: Size | None = 128,
             split_seed: int = 0, drop_empty: bool = False) -> ArraySource:
    """One split of EAD-2019's training frames, RGB: 70 % train, 10 % val, 20 % test.

    Args:
      split: 'train', 'val' or 'test'.
      data_dir: where the folder ead2019 is; None reads the environment.
      size: resize to this; the frames differ in size.
      split_seed: of the split.
      drop_empty: drop and count boxes of zero area, or inverted, instead of refusing them.

    Raises:
      FileNotFoundError: when the folder is absent.
      ValueError: for a frame without text file or a damaged file; file and line are named.
    """
    files.check_split(split, SPLITS, 'ead2019')
    root = locate(data_dir)
    names = _class_names(root)
    frames = sorted(path for path in root.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not frames:
        raise ValueError(f'{root} holds no frames ({", ".join(SUFFIXES)})')
    bare = [path for path in frames if not path.with_suffix('.txt').is_file()]
    if bare:
        raise ValueError(f'{bare[0]} has no text file beside it ({len(bare)} such frames); an empty one says that '
                         'nothing is there')
    read = [read_boxes(path.with_suffix('.txt'), len(names), drop_empty=drop_empty) for path in frames]
    kinds = np.asarray([_most_frequent(objects.labels, len(names)) for objects, _, _ in read])
    rows = stratified_split(kinds, seed=split_seed)[split]
    images, resized = stack([read_image(frames[row], 3) for row in rows], [frames[row] for row in rows], size)
    chosen = [read[row] for row in rows]
    return ArraySource(images, pack([objects for objects, _, _ in chosen]), name='ead2019', split=split,
                       class_names=names, range_map=f'uint8 / 255{resized}', notes=_notes(chosen))


def _class_names(root: Path) -> tuple[str, ...]:
    path = next(iter(sorted(root.rglob(_CLASS_LIST))), None)
    return CLASS_NAMES if path is None else tuple(files.read_text(path).split())


def _most_frequent(labels: np.ndarray, num_classes: int) -> int:
    """The class that most boxes have; `num_classes` for a frame without objects."""
    return int(np.bincount(labels, minlength=num_classes).argmax()) if len(labels) else num_classes


def _notes(read: Sequence[tuple[Objects, int, int]]) -> list[str]:
    dropped, clipped = sum(each[1] for each in read), sum(each[2] for each in read)
    without = sum(not len(objects.labels) for objects, _, _ in read)
    counts = {'boxes of zero area or inverted were dropped': dropped, 'images have no object': without,
              'boxes that reached over the edge were clipped': clipped}
    return ['Split from a seed, frame by frame: frames of one video may be in several splits.',
            *(f'{count} {words}.' for words, count in counts.items() if count)]
