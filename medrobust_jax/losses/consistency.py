"""How far outputs are from reference outputs: the stabilization terms of SMIA.

Each has the signature `(reference, outputs) -> [B]`, is 0 (or least) when both agree, and treats
every axis between the batch's and the last one as positions to average over, so that the same
function serves logits `[B, C]` and per-pixel logits `[B, *spatial, C]`.

Contents: `kl`, `hard`, `squared_error`, `STABILIZATIONS`.

Example:

    penalty = kl(jax.lax.stop_gradient(smoothed_logits), logits)     # [B]
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array, Outputs
from medrobust_jax.losses.classification import kl_divergence


def kl(reference: Array, outputs: Array) -> Array:
    """`KL(softmax(reference) || softmax(outputs))`, mean over positions; `[B, ..., C]` twice -> `[B]`."""
    return _mean_over_positions(kl_divergence(reference, outputs))


def hard(reference: Array, outputs: Array) -> Array:
    """Cross-entropy of `outputs` to the argmax of `reference`, mean over positions.

    The published code's form of the stabilization term, `[B, ..., C]` twice -> `[B]`.
    """
    log_q = jax.nn.log_softmax(outputs, axis=-1)
    chosen = jnp.argmax(reference, axis=-1)[..., None] == jnp.arange(outputs.shape[-1])
    return _mean_over_positions(-jnp.sum(jnp.where(chosen, log_q, 0), axis=-1))


def squared_error(reference: Outputs, outputs: Outputs) -> Array:
    """Mean squared difference over all entries of a tree of outputs; for regression and boxes; `[B]`."""
    squared = jax.tree.map(lambda a, b: jnp.square(a - b).reshape(a.shape[0], -1), reference, outputs)
    return jnp.concatenate(jax.tree.leaves(squared), axis=1).mean(axis=1)


def _mean_over_positions(values: Array) -> Array:
    return values.reshape(values.shape[0], -1).mean(axis=1)


STABILIZATIONS = {'kl': kl, 'hard': hard, 'squared_error': squared_error}
