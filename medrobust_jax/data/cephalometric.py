"""ISBI 2015 cephalometric X-rays: 400 lateral views with 19 landmarks, marked by two doctors.

Contents: `POINT_NAMES`, `PIXEL_MM`, `open_cephalometric`, `pixel_size`.

The public layout is read:

    RawImage/{TrainingData, Test1Data, Test2Data}/001.bmp ...        2400 rows, 1935 columns, .1 mm each
    AnnotationsByMD/{400_senior, 400_junior}/001.txt ...             19 lines 'x,y' in pixels, then other lines

and the truth is the mean of the two doctors. 'train' is TrainingData (less what 'val' takes), 'test' is
Test1Data, 'test2' Test2Data. Every image is another patient.

Example:

    source = open_cephalometric('train', size=(200, 160))
    task = landmarks(19, size=(200, 160), unit='mm', pixel_size=pixel_size((200, 160)))

References:
  Wang et al., A benchmark for comparison of dental radiography analysis algorithms, Medical Image
  Analysis 2016.
"""
import os
from pathlib import Path

import numpy as np
from PIL import Image

from medrobust_jax.data import files
from medrobust_jax.data.resize import Size, resize_images, target_size
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import stratified_split

# In the order of the annotation files.
POINT_NAMES = ('sella', 'nasion', 'orbitale', 'porion', 'subspinale', 'supramentale', 'pogonion', 'menton',
               'gnathion', 'gonion', 'lower incisal incision', 'upper incisal incision', 'upper lip',
               'lower lip', 'subnasale', 'soft tissue pogonion', 'posterior nasal spine',
               'anterior nasal spine', 'articulare')
PIXEL_MM = .1
NATIVE = (2400, 1935)
FOLDERS = {'train': 'TrainingData', 'val': 'TrainingData', 'test': 'Test1Data', 'test2': 'Test2Data'}
DOCTORS = ('400_senior', '400_junior')
_HOW = ("Save the public files of the ISBI 2015 challenge as DATA_DIR/cephalometric, with RawImage/TrainingData, "
        "Test1Data, Test2Data and AnnotationsByMD/400_senior, 400_junior.")


def pixel_size(size: Size) -> tuple[float, float]:
    """The (height, width) in mm of a pixel once the images were resized to `size`."""
    height, width = target_size(size)
    return NATIVE[0] * PIXEL_MM / height, NATIVE[1] * PIXEL_MM / width


def open_cephalometric(split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
                       size: Size | None = None, split_seed: int = 0, val_fraction: float = .15) -> ArraySource:
    """One split, with 'points' `[19, 2]`.

    Args:
      split: 'train', 'val', 'test' or 'test2'.
      data_dir: where the folder is; None reads the environment.
      size: (height, width), or one number for both; None means (200, 160), the published network's.
      split_seed: of the validation split.
      val_fraction: the part of TrainingData that becomes 'val'.

    Raises:
      FileNotFoundError: when the folder, or the annotation of an image, is absent.
      ValueError: for an unknown split, unreadable files, or landmarks outside their image.
    """
    files.check_split(split, tuple(FOLDERS), 'cephalometric')
    root = _locate(data_dir)
    pair = target_size((200, 160) if size is None else size)
    folder = root / 'RawImage' / FOLDERS[split]
    paths = sorted(path for path in folder.glob('*') if path.suffix.lower() in ('.bmp', '.png', '.jpg'))
    if not paths:
        raise FileNotFoundError(f'no images in {folder}. {_HOW}')
    if split in ('train', 'val'):
        fractions = (1 - val_fraction, val_fraction, 0.)
        rows = stratified_split(np.zeros(len(paths), int), seed=split_seed, fractions=fractions)[split]
        paths = [paths[row] for row in rows]
    images, points = zip(*(_read(path, root / 'AnnotationsByMD', pair) for path in paths), strict=True)
    notes = (f"Landmarks are the mean of two doctors'; 'val' is {val_fraction:.0%} of TrainingData, by a seed.",)
    return ArraySource(np.stack(images), {'points': np.stack(points)}, name='cephalometric', split=split,
                       class_names=POINT_NAMES, range_map=f'uint8 / 255, resized to {pair[0]}x{pair[1]}',
                       groups=np.asarray([path.stem for path in paths]), notes=notes)


def _locate(data_dir: str | os.PathLike[str] | None) -> Path:
    directory = files.data_directory(data_dir)
    looked = [] if directory is None else [directory / 'cephalometric', directory]
    for root in looked:
        if (root / 'RawImage').is_dir():
            return root
    places = ', '.join(map(str, looked)) or f'nowhere: give data_dir or set {files.DATA_VARIABLE}'
    raise FileNotFoundError(f'no folder RawImage; looked in {places}. {_HOW}')


def _read(path: Path, annotations: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The resized image `[H, W, 1]` and the doctors' mean points `[19, 2]` as fractions."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert('L'))
    except (OSError, SyntaxError) as error:
        raise ValueError(f'{path} is no readable image ({error})') from error
    marks = [_annotation(annotations / doctor / f'{path.stem}.txt') for doctor in DOCTORS]
    # Marks are whole pixels, counted from 0; a pixel's center is half a pixel further.
    points = (np.mean(marks, axis=0) + .5) / (pixels.shape[1], pixels.shape[0])
    outside = np.flatnonzero(~((points >= 0) & (points <= 1)).all(axis=1))
    if outside.size:
        raise ValueError(f'{path}: landmark {outside[0]} ({POINT_NAMES[outside[0]]}) at '
                         f'{np.mean(marks, axis=0)[outside[0]]} lies outside the {pixels.shape[1]} x '
                         f'{pixels.shape[0]} image')
    return resize_images(pixels[None, ..., None], size)[0], points.astype(np.float32)


def _annotation(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f'no annotation {path}. {_HOW}')
    lines = files.read_text(path).splitlines()[:len(POINT_NAMES)]
    found = []
    for number, line in enumerate(lines):
        try:
            x, y = (float(part) for part in line.split(','))
        except ValueError as error:
            raise ValueError(f"{path}, line {number + 1}: '{line}' is not 'x,y'") from error
        found.append((x, y))
    if len(found) < len(POINT_NAMES):
        raise ValueError(f'{path} has {len(found)} landmarks; {len(POINT_NAMES)} are needed')
    return np.asarray(found)
