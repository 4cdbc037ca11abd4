"""Moving averages of weights.

Contents: `moving_average`.

Example:

    ema = moving_average(ema, (params, model_state), step=step, decay=0.999)
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array, PyTree


def moving_average(average: PyTree, values: PyTree, *, step: Array, decay: float) -> PyTree:
    """One update of an exponential moving average that forgets its start quickly.

        average <- d average + (1 - d) values,    d = min(decay, (1 + step) / (10 + step))

    The rising decay weighs early averages toward what was learned, where a fixed decay would keep
    the random initial weights for 1 / (1 - decay) steps. BatchNorm statistics are averaged like the
    parameters, so that the two fit together. Leaves that are not floating point are taken over.

    Args:
      average: a tree of arrays.
      values: a tree of the same structure, after the update that the step made.
      step: int scalar, the number of updates made before this one.
      decay: in [0, 1).

    Returns:
      The new average.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))

    def blend(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return (d * old + (1 - d) * new).astype(new.dtype)

    return jax.tree.map(blend, average, values)
