"""Random input transforms that gradients pass through: input diversity and expectation over transforms.

A transform has the signature `(keys [B], images [B, *spatial, C]) -> images`.

Contents: `identity`; from `core.transforms`: `random_resize`, `gaussian_noise`.

Example:

    robust_to_scale = averaged_over(pgd(num_steps=20), random_resize(smallest=0.8), num_samples=8)
"""
from medrobust_jax.core.transforms import Transform, gaussian_noise, random_resize
from medrobust_jax.core.types import Array

__all__ = ['Transform', 'gaussian_noise', 'identity', 'random_resize']


def identity(keys: Array, images: Array) -> Array:
    """No transform: averages over the model's own randomness alone."""
    return images
