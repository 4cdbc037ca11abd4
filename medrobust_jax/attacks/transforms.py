"""Random input transforms that gradients pass through: input diversity and expectation over transforms.

A transform has the signature `(keys [B], images [B, *spatial, C]) -> images`.

Contents: `identity`, `random_resize`, `gaussian_noise`.

Example:

    robust_to_scale = averaged_over(pgd(num_steps=20), random_resize(smallest=0.8), num_samples=8)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.core import rng
from medrobust_jax.core.masking import per_example
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
    """Adds N(0, sigma^2) to every pixel; the result may leave the box."""
    def add(keys: Array, images: Array) -> Array:
        noise = rng.normal(keys, images.shape[1:]).astype(images.dtype)
        return images + per_example(jnp.full(images.shape[0], sigma, images.dtype), images) * noise
    return add
