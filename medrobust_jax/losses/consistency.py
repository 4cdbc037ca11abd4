"""How far outputs are from reference outputs: the stabilization terms of SMIA.

Each has the signature `(reference, outputs) -> [B]`, is 0 (or least) when both agree, and treats
every axis between the batch's and the last one as positions to average over, so that the same
function serves logits `[B, C]` and per-pixel logits `[B, *spatial, C]`. Of a tree of outputs (the
passes of an average over transforms) it is the mean over the leaves.

Contents: `kl`, `hard`, `squared_error`, `STABILIZATIONS`.

Example:

    penalty = kl(jax.lax.stop_gradient(smoothed_logits), logits)     # [B]
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array, Outputs
from medrobust_jax.losses.classification import cross_entropy, kl_divergence


def kl(reference: Outputs, outputs: Outputs) -> Array:
    """`KL(softmax(reference) || softmax(outputs))`, mean over positions; `[B, ..., C]` twice -> `[B]`."""
    return _mean_over_leaves(kl_divergence, reference, outputs)


def hard(reference: Outputs, outputs: Outputs) -> Array:
    """Cross-entropy of `outputs` to the argmax of `reference`, mean over positions.

    The published code's form of the stabilization term, `[B, ..., C]` twice -> `[B]`.
    """
    return _mean_over_leaves(lambda ref, out: cross_entropy(out, jnp.argmax(ref, axis=-1)), reference, outputs)


def squared_error(reference: Outputs, outputs: Outputs) -> Array:
    """Mean squared difference over all entries of a tree of outputs; for regression and boxes; `[B]`."""
    squared = jax.tree.map(lambda a, b: jnp.square(a - b).reshape(a.shape[0], -1), reference, outputs)
    return jnp.concatenate(jax.tree.leaves(squared), axis=1).mean(axis=1)


def _mean_over_leaves(distance: Callable[[Array, Array], Array], reference: Outputs, outputs: Outputs) -> Array:
    per_leaf = jax.tree.map(lambda a, b: distance(a, b).reshape(a.shape[0], -1).mean(axis=1), reference, outputs)
    return jnp.stack(jax.tree.leaves(per_leaf)).mean(axis=0)


STABILIZATIONS = {'kl': kl, 'hard': hard, 'squared_error': squared_error}
