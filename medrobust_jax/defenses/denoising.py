"""Training a network to remove noise from clean images: no defense by itself, but what one is made of.

    min  E ||R(x + s n) - x||^2 / d,     s ~ U(0, sigma) per image,  n ~ N(0, I)

Contents: `denoising`, `noised`.

Example:

    defense = denoising(sigma=0.1)                     # with models.dncnn as the network
"""
from medrobust_jax.core import rng
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Batch, Defense, Forward, PyTree
from medrobust_jax.defenses.standard import stateless


def noised(keys: Array, images: Array, *, sigma: float) -> Array:
    """`x + s n` with s ~ U(0, sigma) per image; may leave the box."""
    level_keys, noise_keys = rng.split_each(keys, 2)
    level = per_example(sigma * rng.uniform(level_keys, (), dtype=images.dtype), images)
    return images + level * rng.normal(noise_keys, images.shape[1:], images.dtype)


def denoising(*, sigma: float) -> Defense:
    """The objective above, for a network `images -> images`; BatchNorm in 'train' mode.

    Args:
      sigma: the largest standard deviation, > 0, in units of [0, 1] pixels.

    Raises:
      ValueError: for a sigma out of range.

    References:
      Zhang et al., IEEE TIP 2017, section III-C (noise of unknown level). Salman, Sun, Yang, Kapoor, Kolter,
      Denoised Smoothing, NeurIPS 2020, equation 3 (before a classifier).
    """
    if not 0 < sigma < float('inf'):
        raise ValueError(f'denoising needs a finite sigma > 0, in units of [0, 1] pixels, not {sigma}')

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: PyTree, step: Array, keys: Array) -> tuple:
        clean = batch['image']
        outputs, model_state = forward(params, model_state, noised(keys, clean, sigma=sigma), batch_norm='train')
        squared = ((outputs - clean) ** 2).reshape(clean.shape[0], -1).mean(axis=1)
        return squared, (model_state, {'mean_squared_error': squared})

    return stateless(lambda *args: (), loss)
