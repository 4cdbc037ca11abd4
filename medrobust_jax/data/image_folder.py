"""A folder of PNG or JPEG images by class.

Contents: `SUFFIXES`, `open_folder`.

Images of 8 bits become uint8 / 255, images of 16 bits uint16 / max_value. Images with an EXIF tag of
orientation (photographs of a telephone) are turned upright, as every viewer shows them; transparency is
dropped.

Example:

    source = open_folder('~/scans', 'train', size=64)      # ~/scans/<class>/*.png
"""
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from medrobust_jax.data import listing
from medrobust_jax.data.resize import Size, describe, resize_images
from medrobust_jax.data.source import ArraySource

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff')
_GREY = ('1', 'L', 'LA', 'I', 'I;16', 'I;16B', 'I;16L')
_DEEP = ('I', 'I;16', 'I;16B', 'I;16L')


def open_folder(path: str, split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
                size: Size | None = None, channels: int | None = None, max_value: int = 65535,
                group_pattern: str | None = None, split_seed: int = 0,
                val_fraction: float = 0.) -> ArraySource:
    """One split of a folder of images.

    Args:
      path: a folder `class/*` (split by class, from a seed: 70/10/20 %) or `split/class/*` with
        splits called train, val and test.
      split: 'train', 'val' or 'test'.
      data_dir: where a relative path is also looked for; None reads the environment.
      size: resize to this; required where images differ in size.
      channels: 1 converts to grey, 3 to RGB; None takes RGB where any image has color.
      max_value: of 16-bit images, the raw value that becomes 1.
      group_pattern: see `listing.from_folders`; patients stay in one split.
      split_seed: of a split made here.
      val_fraction: see `listing.choose`.

    Raises:
      FileNotFoundError: when there is no such folder.
      ValueError: for a damaged file (by name), images of several sizes or depths, no images.
    """
    entries = listing.from_folders(listing.place(path, data_dir, 'folder of images'), SUFFIXES, group_pattern)
    chosen = listing.choose(entries, split, split_seed=split_seed, val_fraction=val_fraction)
    names = listing.class_names(entries)
    if channels not in (None, 1, 3):
        raise ValueError(f'channels = {channels} must be 1 (grey) or 3 (RGB)')
    if channels is None:
        channels = 1 if all(_mode(entry.path) in _GREY for entry in entries) else 3
    images, resized = stack([read_image(entry.path, channels) for entry in chosen],
                            [entry.path for entry in chosen], size)
    deep = images.dtype == np.uint16
    return ArraySource(
        images, [names.index(entry.label) for entry in chosen], name=f'folder:{path}', split=split,
        class_names=names, groups=[entry.group for entry in chosen] if group_pattern else None,
        max_value=max_value if deep else None,
        range_map=(f'uint16 / {max_value}' if deep else 'uint8 / 255') + resized)


def read_image(path: Path, channels: int) -> np.ndarray:
    """One image `[H, W, channels]`, upright by its EXIF tag, uint8 or uint16; an error names the file."""
    try:
        with Image.open(path) as image:
            if (frames := getattr(image, 'n_frames', 1)) > 1:
                raise ValueError(f'{path} holds {frames} frames, not one image')
            deep, upright = image.mode in _DEEP, ImageOps.exif_transpose(image)
            pixels = np.asarray(upright if deep else upright.convert('L' if channels == 1 else 'RGB'))
    except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise ValueError(f'{path} is truncated, damaged or no image ({error})') from error
    if not deep:
        return pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f'{path} holds values outside 16 bits: {pixels.min()} to {pixels.max()}')
    return np.repeat(pixels.astype(np.uint16)[..., None], channels, axis=-1)


def stack(images: Sequence[np.ndarray], paths: Sequence[Path], size: Size | None) -> tuple[np.ndarray, str]:
    """Images of one size and dtype as `[N, H, W, C]`, and what resizing did, in words."""
    for image, path in zip(images, paths, strict=True):
        if image.dtype != images[0].dtype:
            raise ValueError(f'{path} is {image.dtype} and {paths[0]} {images[0].dtype}; '
                             'images of one data set need one depth')
        if size is None and image.shape != images[0].shape:
            raise ValueError(f'{path} is {image.shape[:2]} and {paths[0]} {images[0].shape[:2]} pixels; '
                             'give size= to resize them')
    if not images:
        raise ValueError('no images in this split')
    if size is None:
        return np.stack(images), ''
    words = sorted({describe(image.shape, size) for image in images} - {''})
    resized = words[0] if len(words) == 1 else f', several sizes resized to {size}' if words else ''
    return np.concatenate([resize_images(image[None], size) for image in images]), resized


def _mode(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return image.mode
    except OSError as error:
        raise ValueError(f'{path} is damaged or no image ({error})') from error
