"""Deterministic resizing, the same on every machine and part of the fingerprint.

Contents: `resize_images`, `describe`.

Example:

    small = resize_images(images, (64, 64))      # uint8 in, uint8 out
"""
import numpy as np
from PIL import Image

Size = int | tuple[int, int]


def resize_images(images: np.ndarray, size: Size) -> np.ndarray:
    """Resizes `[N, H, W, C]` to `size`, keeping the dtype.

    Averages whole blocks of pixels where the new size divides the old one (Pillow's box filter),
    otherwise Pillow's bilinear filter, which widens when it shrinks and so does not alias.

    Args:
      images: uint8, uint16 or floating point.
      size: (height, width), or one number for both.

    Raises:
      ValueError: for images that are not 2-D, or a size that is not positive.
    """
    height, width = target_size(size)
    if images.ndim != 4:
        raise ValueError(f'size = {size} resizes 2-D images; these have shape {images.shape[1:]}')
    if images.shape[1:3] == (height, width):
        return images
    resample = _resample(images.shape[1:3], (height, width))
    resized = np.empty((len(images), height, width, images.shape[3]), images.dtype)
    integer = np.issubdtype(images.dtype, np.integer)
    for row, image in enumerate(images):
        for channel in range(image.shape[-1]):
            plane = image[..., channel]
            plane = plane if plane.dtype == np.uint8 else plane.astype(np.float32)
            result = np.asarray(Image.fromarray(plane).resize((width, height), resample))
            result = np.round(result) if integer else result
            # Both filters average, so only rounding can leave the range of the old pixels.
            resized[row, ..., channel] = np.clip(result, plane.min(), plane.max())
    return resized


def target_size(size: Size) -> tuple[int, int]:
    """(height, width) from a number or a pair."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f'size = {size} must be a positive number or (height, width)')
    return int(pair[0]), int(pair[1])


def describe(old: tuple[int, ...], size: Size | None) -> str:
    """What `resize_images` did to images of shape `(H, W, C)`, for a range map; '' for nothing."""
    if size is None or tuple(old[:2]) == target_size(size):
        return ''
    height, width = target_size(size)
    kind = 'box' if _resample(old[:2], (height, width)) == Image.Resampling.BOX else 'bilinear'
    return f', resized from {old[0]}x{old[1]} to {height}x{width} ({kind})'


def _resample(old: tuple[int, ...], new: tuple[int, int]) -> Image.Resampling:
    divides = old[0] % new[0] == 0 and old[1] % new[1] == 0
    return Image.Resampling.BOX if divides else Image.Resampling.BILINEAR
