"""What may be put before a model, and which gradient an attack sees through it.

A rounded, compressed or filtered image hides the model's gradient, and a random one hides it in
noise: an attack that fails for that reason says nothing of the model. So each preprocessor states
whether its own gradient is of use and whether it draws, and `preprocessed` passes on

    'exact'      its own gradient;
    'identity'   that of the identity (BPDA), while the forward pass stays the transform's;
    'blocked'    none: a control that shows what masked gradients pretend, never a measurement.

Randomness is averaged over by `attacks.wrappers.averaged_over` (EOT).

Contents: `Preprocessor`, `PREPROCESSORS` (by name, for configs), `create_preprocessor`, `denoiser`,
`preprocessed`, `usable_gradient`.

Example:

    squeeze = create_preprocessor('bit_depth', bits=3)
    forward = preprocessed(forward, squeeze.apply, backward=usable_gradient(squeeze))

References:
  Athalye, Carlini, Wagner, Obfuscated Gradients Give a False Sense of Security, ICML 2018 (BPDA, EOT).
"""
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from medrobust_jax.core import rng, transforms
from medrobust_jax.core.checks import check_options, did_you_mean
from medrobust_jax.core.filters import median_filter
from medrobust_jax.core.jpeg import jpeg
from medrobust_jax.core.total_variation import denoise
from medrobust_jax.core.transforms import Transform
from medrobust_jax.core.types import Array

BACKWARD = ('exact', 'identity', 'blocked')


class Preprocessor(NamedTuple):
    """A transform of images, and what an attack has to know of it.

    Attributes:
      apply: `(keys [B], images [B, *spatial, C]) -> images`, of the same shape.
      differentiable: whether it is differentiable almost everywhere, with a gradient that says where it rises.
      flat: whether its own gradient is zero, so that 'exact' would be 'blocked' by another name.
      random: whether it draws.
    """

    apply: Transform
    differentiable: bool = True
    flat: bool = False
    random: bool = False


def _jpeg(*, quality: float = 75.0) -> Preprocessor:
    """JPEG at a `quality` of 1 ... 100; 75, libjpeg's default. 'exact' is the gradient with roundings passed."""
    if not 1 <= quality <= 100:
        raise ValueError(f'jpeg needs a quality from 1 to 100, not {quality}')

    def compress(keys: Array, images: Array) -> Array:
        return jpeg(images, jnp.full(images.shape[0], quality, images.dtype))
    return Preprocessor(compress, differentiable=False)


def _bit_depth(*, bits: int = 3) -> Preprocessor:
    return Preprocessor(transforms.bit_depth(bits=bits), differentiable=False, flat=True)


def _median(*, size: int = 3) -> Preprocessor:
    if size < 1:
        raise ValueError(f'median needs a size of at least 1, not {size}')
    return Preprocessor(lambda keys, images: median_filter(images, size=size))


def _total_variation(*, weight: float = 0.05, num_steps: int = 50) -> Preprocessor:
    """Total variation denoising; the weight is ours."""
    denoise(jnp.zeros((1, 1, 1, 1)), weight=weight, num_steps=num_steps)  # refuses what is out of range
    return Preprocessor(lambda keys, images: denoise(images, weight=weight, num_steps=num_steps))


def _random_resize(*, probability: float = 1.0, smallest: float = 0.85) -> Preprocessor:
    return Preprocessor(transforms.random_resize(probability=probability, smallest=smallest), random=True)


def _gaussian_noise(*, sigma: float = 0.1) -> Preprocessor:
    return Preprocessor(transforms.gaussian_noise(sigma=sigma), random=True)


def denoiser(network: Callable[[Array], Array]) -> Preprocessor:
    """A trained network `images -> images`, such as `models.dncnn`; its outputs are not clipped."""
    return Preprocessor(lambda keys, images: network(images))


PREPROCESSORS: dict[str, Callable[..., Preprocessor]] = {
    'jpeg': _jpeg,
    'bit_depth': _bit_depth,
    'median': _median,
    'total_variation': _total_variation,
    'random_resize': _random_resize,
    'gaussian_noise': _gaussian_noise,
}


def create_preprocessor(name: str, /, **options: Any) -> Preprocessor:
    """The preprocessor called `name`.

    Raises:
      ValueError: for an unknown name or option, suggesting the nearest, or an option out of range.
    """
    if name not in PREPROCESSORS:
        did_you_mean(name, PREPROCESSORS, 'preprocessor')
    check_options(options, inspect.signature(PREPROCESSORS[name]).parameters, f"option of preprocessor '{name}'")
    return PREPROCESSORS[name](**options)


def usable_gradient(preprocessor: Preprocessor, wanted: str = 'auto') -> str:
    """One of `BACKWARD` for `wanted`; 'auto' is 'exact' where the preprocessor is differentiable, else 'identity'.

    Raises:
      ValueError: for an unknown name, or 'exact' where the gradient is zero.
    """
    if wanted not in (*BACKWARD, 'auto'):
        did_you_mean(wanted, (*BACKWARD, 'auto'), 'gradient of a preprocessor')
    if wanted == 'exact' and preprocessor.flat:
        raise ValueError("the exact gradient of this preprocessor is zero: choose 'identity', or 'blocked' for a "
                         'control')
    return ('exact' if preprocessor.differentiable else 'identity') if wanted == 'auto' else wanted


def preprocessed(forward: Callable[..., Any], transform: Transform, *, backward: str = 'exact'
                 ) -> Callable[..., Any]:
    """`forward(transform(images))`, with the gradient that `backward` names.

    Wrapped twice, the outer transform comes first. Each draws from keys of its own, and so does the model.

    Args:
      forward: `(images, keys) -> outputs` as attacks see it, or `(variables, images, keys) -> outputs`.
      transform: `(keys, images) -> images` of the same shape.
      backward: 'exact', 'identity' or 'blocked', see above.

    Returns:
      A function of the same arguments. Values are the transform's to the bit, whatever the gradient.

    Raises:
      ValueError: for an unknown `backward`.
    """
    if backward not in BACKWARD:
        did_you_mean(backward, BACKWARD, 'gradient of a preprocessor')
    return partial(_through, forward, transform, backward)


def _through(forward: Callable[..., Any], transform: Transform, backward: str, *arguments: Any) -> Any:
    *variables, images, keys = arguments
    own, rest = rng.split_each(keys, 2)
    seen = transform(own, images)
    if backward != 'exact':
        seen = jax.lax.stop_gradient(seen)
    if backward == 'identity':
        seen = seen + (images - jax.lax.stop_gradient(images))  # adds zero, exactly
    return forward(*variables, seen, rest)
