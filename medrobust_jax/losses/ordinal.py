"""Losses of ordinal grades, by cumulative logits.

A grade in 0..K-1 is coded by K - 1 binary questions "is the grade above k?", each with its own
logit (Frank and Hall, ECML 2001; trained jointly as in Niu et al., CVPR 2016).

Contents: `cumulative_cross_entropy`, `bernoulli_kl`, `predicted_grade`.

Example:

    losses = cumulative_cross_entropy(logits, grades)     # logits [B, K-1], grades [B] -> [B]
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array


def cumulative_cross_entropy(logits: Array, grades: Array) -> Array:
    """`sum_k BCE(sigmoid(z_k), [y > k])`.

    Args:
      logits: `[B, K-1]`.
      grades: `[B]` int in [0, K).

    Returns:
      `[B]`, in nats, >= 0.
    """
    above = grades[:, None] > jnp.arange(logits.shape[-1])
    return -jnp.sum(jax.nn.log_sigmoid(jnp.where(above, logits, -logits)), axis=-1)


def bernoulli_kl(reference: Array, logits: Array) -> Array:
    """`sum_k KL(Bernoulli(sigmoid(reference_k)) || Bernoulli(sigmoid(logits_k)))`, `[B]`."""
    p = jax.nn.sigmoid(reference)
    yes = jax.nn.log_sigmoid(reference) - jax.nn.log_sigmoid(logits)
    no = jax.nn.log_sigmoid(-reference) - jax.nn.log_sigmoid(-logits)
    return jnp.sum(p * yes + (1 - p) * no, axis=-1)


def predicted_grade(logits: Array) -> Array:
    """How many questions are answered yes, `[B]` int32 in [0, K)."""
    return jnp.sum(logits > 0, axis=-1).astype(jnp.int32)
