"""Means over the real examples of a padded batch.

Example:

    loss = masked_mean(losses, batch['mask'])      # padding does not count
"""
import jax.numpy as jnp

from medrobust_jax.core.types import Array


def per_example(values: Array, like: Array) -> Array:
    """Reshapes `values` `[B]` to `[B, 1, ..., 1]` so that it broadcasts against `like` `[B, ...]`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def masked_sum(values: Array, mask: Array) -> tuple[Array, Array]:
    """The mergeable pair (sum of the masked `values` `[B]`, count); NaN under the mask is ignored.

    Verdicts and narrow floats are summed in float32: a count does not fit their own type.
    """
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    return jnp.sum(jnp.where(mask, values, 0).astype(dtype)), jnp.sum(mask).astype(dtype)


def masked_mean(values: Array, mask: Array) -> Array:
    """The mean of `values` `[B]` where `mask` `[B]`; 0 where nothing is."""
    total, count = masked_sum(values, mask)
    return total / jnp.maximum(count, 1)
