"""Transforms of images that attacks average over, defenses put before a model, and augmentation draws.

A transform has the signature `(keys [B], images [B, *spatial, C]) -> images`: all randomness comes from the keys,
one per image, and deterministic transforms ignore them.

Contents: `Transform`, `identity`, `random_resize`, `gaussian_noise`, `bit_depth`.

Example:

    coarse = bit_depth(bits=3)(keys, images)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core import rng
from medrobust_jax.core.types import Array

Transform = Callable[[Array, Array], Array]


def identity(keys: Array, images: Array) -> Array:
    """No transform: averages over the model's own randomness alone."""
    return images


def random_resize(*, probability: float = 1.0, smallest: float = 0.85) -> Transform:
    """Shrinks to a random scale in [smallest, 1] and pads with zeros at a random place.

    Args:
      probability: in [0, 1], how often an image is transformed at all.
      smallest: in (0, 1].

    Raises:
      ValueError: for values out of range.
    """
    if not 0 <= probability <= 1 or not 0 < smallest <= 1:
        raise ValueError(f'random_resize needs probability in [0, 1] and smallest in (0, 1], '
                         f'not {probability} and {smallest}')

    def resize_one(key: Array, image: Array) -> Array:
        scale_key, place_key, coin_key = jax.random.split(key, 3)
        spatial = image.ndim - 1
        sizes = jnp.asarray(image.shape[:-1], image.dtype)
        scale = jax.random.uniform(scale_key, (), image.dtype, smallest, 1.0)
        place = jax.random.uniform(place_key, (spatial,), image.dtype) * (1 - scale) * sizes
        small = jax.image.scale_and_translate(image, image.shape, tuple(range(spatial)),
                                              jnp.broadcast_to(scale, (spatial,)), place, method='linear')
        return jnp.where(jax.random.uniform(coin_key) < probability, small, image)

    return jax.vmap(resize_one)


def gaussian_noise(*, sigma: float) -> Transform:
    """Adds N(0, sigma^2) to every pixel, sigma in units of [0, 1] pixels; the result may leave the box.

    Raises:
      ValueError: for a sigma that is negative or not finite.
    """
    if not 0 <= sigma < np.inf:
        raise ValueError(f'gaussian_noise needs a finite sigma >= 0, in units of [0, 1] pixels, not {sigma}')

    def add(keys: Array, images: Array) -> Array:
        return images + sigma * rng.normal(keys, images.shape[1:]).astype(images.dtype)
    return add


def bit_depth(*, bits: int) -> Transform:
    """Rounds pixels to `2^bits` equally spaced levels in [0, 1]; flat, so that its gradient is zero.

        round(x (2^bits - 1)) / (2^bits - 1)

    Raises:
      ValueError: for bits outside 1 ... 16.

    References: Xu, Evans, Qi, Feature Squeezing, NDSS 2018.
    """
    if bits not in range(1, 17):
        raise ValueError(f'bit_depth needs a whole number of bits from 1 to 16, not {bits}')
    levels = 2**bits - 1
    return lambda keys, images: jnp.round(images * levels) / levels
