"""Randomness, one typed key per example.

An example's key is folded from the run's seed and the example's row in the data set, so its draws
do not depend on the batch it travels in, its place there, or the number of devices.

Contents: `example_keys`, `fold`, `split_each`, `uniform`, `normal`.

Example:

    keys = example_keys(0, batch['index'], restart)          # [B]
    start_keys, step_keys = split_each(keys, 2)              # each [B]
    noise = uniform(start_keys, images.shape[1:], -1., 1.)   # [B, *spatial, C]
"""
import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.types import Array


def example_keys(seed: int | Array, index: Array | np.ndarray, *folds: int | Array) -> Array:
    """One typed key per example.

    Args:
      seed: the run's seed.
      index: `[B]` int, rows in the data set.
      *folds: further scalars folded in before the index, e.g. the step or the restart.

    Returns:
      `[B]` typed keys.
    """
    key = jax.random.key(seed)
    for value in folds:
        key = jax.random.fold_in(key, value)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(index))


def fold(keys: Array, data: int | Array) -> Array:
    """Folds `data` (a scalar or `[B]`) into every key of `keys` `[B]`."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(jnp.asarray(data), keys.shape))


def split_each(keys: Array, num: int) -> Array:
    """Splits every key of `keys` `[B]` into `num`; returns `[num, B]`, to be unpacked."""
    return jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, num))(keys), 0, 1)


def uniform(keys: Array, shape: tuple[int, ...], low: float | Array = 0.0, high: float | Array = 1.0,
            dtype: jnp.dtype = jnp.float32) -> Array:
    """Independent U(low, high) draws, `[B, *shape]`, one key per example."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype, low, high))(keys)


def normal(keys: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Independent N(0, 1) draws, `[B, *shape]`, one key per example."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
