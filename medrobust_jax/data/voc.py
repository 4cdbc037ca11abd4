"""Images with boxes in the Pascal-VOC layout: one XML file per image.

Contents: `Annotation`, `read_annotation`, `read_names`, `read_split`, `open_voc`.

Expected are `Annotations/<name>.xml`, `JPEGImages/<name>.jpg` (or png, bmp, tif) and the lists
`ImageSets/Main/<split>.txt`, one name per line. Corners are taken as continuous coordinates, x / width and
y / height, as most annotation tools write them; strict VOC counts pixels from 1, which differs by half a pixel.
What is done with unusable boxes stands in `data.boxes`.

Example:

    source = open_voc('~/cells', 'train', size=160, class_names=('RBC', 'WBC'))
    source[0]['boxes'], source[0]['box_labels'], source[0]['box_mask']

References:
  Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010.
"""
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.data import files, listing
from medrobust_jax.data.boxes import Objects, clean, pack
from medrobust_jax.data.image_folder import SUFFIXES, read_image
from medrobust_jax.data.resize import Size, describe, resize_images
from medrobust_jax.data.source import ArraySource

_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


class Annotation(NamedTuple):
    """What one XML file says.

    Attributes:
      size: (height, width) in pixels.
      names: of the objects' classes.
      boxes: float64 `[m, 4]`, fractions of width and height, unchecked.
    """

    size: tuple[int, int]
    names: tuple[str, ...]
    boxes: np.ndarray


def read_annotation(path: Path) -> Annotation:
    """Reads one XML file.

    Raises:
      ValueError: naming the file, and the object, where something is missing or no number.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f'{path} is truncated or no XML ({error})') from error
    height, width = (_number(root.find('size'), name, f'{path}, size') for name in ('height', 'width'))
    if not (1 <= height < math.inf and 1 <= width < math.inf):
        raise ValueError(f'{path}: a size of {width:g} x {height:g} pixels')
    names, boxes = [], []
    for number, element in enumerate(root.findall('object'), start=1):
        where = f'{path}, object {number}'
        names.append((element.findtext('name') or '').strip())
        if not names[-1]:
            raise ValueError(f'{where}: there is no name, the class of the object')
        boxes.append([_number(element.find('bndbox'), corner, where) for corner in _CORNERS])
    fractions = np.asarray(boxes, float).reshape(-1, 4) / [width, height, width, height]
    return Annotation((int(height), int(width)), tuple(names), fractions)


def read_names(root: Path, split: str) -> list[str]:
    """The image names of one split, from `ImageSets/Main/<split>.txt`.

    Raises:
      ValueError: for an unknown split, an empty list, or a name that occurs twice.
    """
    folder = root / 'ImageSets' / 'Main'
    path = folder / f'{split}.txt'
    if not path.is_file():
        known = ', '.join(sorted(each.stem for each in folder.glob('*.txt'))) or 'none'
        raise ValueError(f"{root} has no split '{split}': {folder} holds the lists {known}")
    names = [line.split()[0] for line in files.read_text(path).splitlines() if line.strip()]
    if not names:
        raise ValueError(f'{path} names no image')
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} names '{twice[0]}' more than once")
    return names


def read_split(root: Path, split: str, *, class_names: Sequence[str], size: Size | None = None, channels: int = 3,
               drop_empty: bool = False) -> tuple[np.ndarray, list[Objects], str, tuple[str, ...]]:
    """Images and objects of one split.

    Args:
      root: the folder with Annotations, ImageSets and JPEGImages.
      split: the name of a list.
      class_names: labels are positions in it.
      size: resize to this; boxes are fractions and stay.
      channels: 3 (RGB) or 1 (grey).
      drop_empty: see `boxes.clean`.

    Returns:
      `(images uint8 [N, H, W, channels], objects, what resizing did, notes)`; notes count what was dropped or
      clipped, and images without objects.
    """
    images, objects, words, problems = [], [], '', {'dropped': [], 'clipped': [], 'without': []}
    for name in read_names(root, split):
        path = root / 'Annotations' / f'{name}.xml'
        if not path.is_file():
            raise FileNotFoundError(f'no annotation {path}, which the list {split} names')
        annotation = read_annotation(path)
        labels = [_label(each, class_names, f'{path}, object {number}')
                  for number, each in enumerate(annotation.names, start=1)]
        found, dropped, clipped = clean(annotation.boxes, np.asarray(labels, int), where=str(path),
                                        drop_empty=drop_empty)
        image = _image(root, name, annotation.size, channels)
        words = words or describe(image.shape, size)
        images.append(image if size is None else resize_images(image[None], size)[0])
        if images[-1].shape != images[0].shape:
            raise ValueError(f'{name} is {image.shape[:2]} pixels, others are {images[0].shape[:2]}: give size=')
        objects.append(found)
        problems['dropped'] += [name] * dropped
        problems['clipped'] += [name] * clipped
        problems['without'] += [name] * (not len(found.labels))
    return np.stack(images), objects, words, _notes(problems)


def open_voc(path: str, split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
             size: Size | None = None, class_names: Sequence[str] | None = None, channels: int = 3,
             drop_empty: bool = False) -> ArraySource:
    """One split of a folder in VOC's layout.

    Args:
      path: the folder.
      split: the name of a list in ImageSets/Main.
      data_dir: where a relative path is also looked for; None reads the environment.
      size: resize to this; required where images differ in size.
      class_names: in label order; None takes all names that occur in Annotations, in the alphabet's order.
      channels: 3 (RGB) or 1 (grey).
      drop_empty: drop and count boxes of zero area, or inverted, instead of refusing them.

    Raises:
      FileNotFoundError: for an absent folder, annotation or image.
      ValueError: for a damaged file, an unknown class or an unusable box; file and object are named.
    """
    root = listing.place(path, data_dir, 'folder in VOC layout')
    if class_names is None:
        class_names = sorted({name for file in sorted((root / 'Annotations').glob('*.xml'))
                              for name in read_annotation(file).names})
    if not class_names:
        raise ValueError(f'{root}/Annotations names no class')
    images, objects, resized, notes = read_split(root, split, class_names=class_names, size=size,
                                                 channels=channels, drop_empty=drop_empty)
    return ArraySource(images, pack(objects), name=f'voc:{path}', split=split, class_names=tuple(class_names),
                       range_map=f'uint8 / 255{resized}', notes=notes)


def _number(element: ElementTree.Element | None, name: str, where: str) -> float:
    text = None if element is None else element.findtext(name)
    try:
        return float(text if text is not None else 'absent')
    except ValueError as error:
        raise ValueError(f"{where}: {name} is '{text}', not a number") from error


def _label(name: str, class_names: Sequence[str], where: str) -> int:
    if name not in class_names:
        did_you_mean(name, class_names, f'class in {where}:')
    return list(class_names).index(name)


def _image(root: Path, name: str, size: tuple[int, int], channels: int) -> np.ndarray:
    """The image of an annotation, of the size that it states."""
    candidates = [root / 'JPEGImages' / f'{name}{suffix}' for suffix in SUFFIXES]
    path = next((each for each in candidates if each.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no image '{name}' ({', '.join(SUFFIXES)}) in {root / 'JPEGImages'}")
    image = read_image(path, channels)
    if image.shape[:2] != size:
        raise ValueError(f'{path} is {image.shape[:2]} pixels (height, width), its annotation says {size}')
    if image.dtype != np.uint8:
        raise ValueError(f'{path} is {image.dtype}, not an image of 8 bits')
    return image


def _notes(problems: dict[str, list[str]]) -> tuple[str, ...]:
    said = {'dropped': 'boxes of zero area or inverted were dropped', 'without': 'images have no object',
            'clipped': 'boxes that reached over the edge were clipped'}
    return tuple(f"{len(names)} {said[kind]}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}."
                 for kind, names in problems.items() if names)
