"""How large the training perturbation is: constant, warmed up, or drawn anew for every batch.

A radius is a function `(step, keys [B]) -> eps`, a scalar in units of [0, 1] pixels.

Contents: `Radius`, `constant`, `uniform_per_batch`, `warmed_up`.

Example:

    radius = warmed_up(constant(8 / 255), steps=500)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.core.checks import check_eps
from medrobust_jax.core.types import Array

Radius = Callable[[Array, Array], Array]


def constant(eps: float) -> Radius:
    """The same eps at every step."""
    check_eps(eps)
    return lambda step, keys: jnp.asarray(eps, jnp.float32)


def uniform_per_batch(low: float, high: float) -> Radius:
    """One draw eps ~ U(low, high) per batch, as in the published semi-supervised training (OCT).

    Raises:
      ValueError: unless 0 <= low <= high.
    """
    check_eps((low, high), field='eps_low, eps_high')
    if low > high:
        raise ValueError(f'eps_low = {low} exceeds eps_high = {high}')
    return lambda step, keys: jax.random.uniform(jax.random.fold_in(keys[0], 0xE95), (), minval=low, maxval=high)


def warmed_up(radius: Radius, *, steps: int) -> Radius:
    """Grows linearly from 0 at step 0 to the whole radius at step `steps`; 0 steps leave it as it is."""
    if steps <= 0:
        return radius
    return lambda step, keys: radius(step, keys) * jnp.minimum(step / steps, 1)
