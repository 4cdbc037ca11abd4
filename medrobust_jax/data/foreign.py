"""Images that are none of the kind a model was made for: noise, or images of another data set.

Contents: `foreign_images`, `fit_to`, `NOISES`.

Example:

    keys = example_keys(0, examples.index)
    images, origin = foreign_images('acdc', keys, image_shape=(64, 32, 1))       # [N, 64, 32, 1] in [0, 1]
    images, origin = foreign_images('noise', keys, image_shape=(64, 32, 1))
"""
import os

import jax
import numpy as np

from medrobust_jax.core import rng
from medrobust_jax.core.types import Array
from medrobust_jax.data import registry
from medrobust_jax.data.resize import resize_images
from medrobust_jax.data.source import read_batch

NOISES = ('noise', 'gaussian')
_DRAWS = 0xF0E1  # keeps these draws apart from those that an attack makes with the same keys


def foreign_images(kind: str, keys: Array, *, image_shape: tuple[int, ...],
                   data_dir: str | os.PathLike[str] | None = None) -> tuple[np.ndarray, str]:
    """One image per key, which decides it.

    Args:
      kind: 'noise', every value U(0, 1); 'gaussian', N(1/2, 1/4) clipped to [0, 1] [ours]; or a data set as
        `registry.load` takes it, of whose test images each key draws one (so that one may come twice).
      keys: `[N]` typed keys.
      image_shape: `(*spatial, C)` of the model's input.
      data_dir: where data sets are looked for; None reads MEDROBUST_DATA.

    Returns:
      `(images float32 [N, *spatial, C] in [0, 1], the data set's fingerprint or '')`.

    Raises:
      ValueError: an unknown name, or a data set that does not fit, see `fit_to`.
      FileNotFoundError: where the data are absent.
    """
    keys = rng.fold(keys, _DRAWS)
    if kind == 'noise':
        return np.asarray(rng.uniform(keys, image_shape)), ''
    if kind == 'gaussian':
        return np.clip(np.asarray(.5 + .25 * rng.normal(keys, image_shape)), 0, 1), ''
    source = registry.load(kind, 'test', data_dir=data_dir)
    rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(source)))(keys)
    try:
        return fit_to(read_batch(source, rows)['image'], image_shape), source.info.fingerprint
    except ValueError as error:
        raise ValueError(f"images of '{kind}' cannot be shown to this model: {error}") from error


def fit_to(images: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """Images of another size and color as a model takes them.

    The largest part around the center with the model's proportions, resized; colors become their mean, gray is
    repeated.

    Args:
      images: float32 `[N, h, w, c]` in [0, 1].
      image_shape: `(H, W, C)`.

    Raises:
      ValueError: where one of the two is not 2-D, or both have several, different channels.
    """
    if images.ndim != 4 or len(image_shape) != 3:
        raise ValueError(f'one has the shape {images.shape[1:]}, the other {tuple(image_shape)}: both must be '
                         '[height, width, channels]')
    (height, width), channels = images.shape[1:3], image_shape[-1]
    scale = min(height / image_shape[0], width / image_shape[1])
    kept = [max(1, round(scale * side)) for side in image_shape[:2]]
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    images = resize_images(images[:, top:top + kept[0], left:left + kept[1]], (image_shape[0], image_shape[1]))
    if images.shape[-1] == channels:
        return images
    if channels > 1 and images.shape[-1] > 1:
        raise ValueError(f'{images.shape[-1]} channels do not become {channels}')
    return np.repeat(images.mean(axis=-1, keepdims=True), channels, axis=-1)
