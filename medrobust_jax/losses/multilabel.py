"""Losses of multi-label classification: several findings, each present or absent.

Contents: `binary_cross_entropy`, `multilabel_margin`, `wrong_labels`, `mean_bernoulli_kl`.

Example:

    losses = binary_cross_entropy(logits, findings)       # logits [B, L], findings [B, L] in {0, 1} -> [B]
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array
from medrobust_jax.losses.ordinal import bernoulli_kl


def binary_cross_entropy(logits: Array, findings: Array) -> Array:
    """`-1/L sum_l log sigmoid(s_l z_l)` with the sign `s_l` = +1 where finding l is present, else -1.

    Args:
      logits: `[B, L]`.
      findings: `[B, L]`, 0 or 1.

    Returns:
      `[B]`, in nats per finding, >= 0.
    """
    return -jax.nn.log_sigmoid(_signed(logits, findings)).mean(axis=-1)


def multilabel_margin(logits: Array, findings: Array, *, tolerance: int = 0) -> Array:
    """By how much the criterion "at most `tolerance` findings wrong" is missed.

    The margin of a finding is `-s_l z_l`, positive where it is wrong; the result is the margin of rank
    `tolerance`, counted from the largest as 0. With tolerance 0 this is the largest wrong margin over the
    findings, Carlini and Wagner's loss (S&P 2017, f6 without its offset) with "any finding wrong" in the
    place of "another class".

    Args:
      logits: `[B, L]`.
      findings: `[B, L]`, 0 or 1.
      tolerance: in 0..L-1.

    Returns:
      `[B]`; positive exactly where more than `tolerance` findings are wrong (logits of 0 aside).

    Raises:
      ValueError: `tolerance` outside its range.
    """
    if not 0 <= tolerance < logits.shape[-1]:
        raise ValueError(f'tolerance = {tolerance} must lie in 0..{logits.shape[-1] - 1}, the findings less one')
    return jax.lax.top_k(-_signed(logits, findings), tolerance + 1)[0][..., -1]


def wrong_labels(logits: Array, findings: Array) -> Array:
    """How many findings are decided wrongly at probability 1/2, `[B]` int32; a logit of 0 says absent."""
    return jnp.sum((logits > 0) != (findings > 0), axis=-1).astype(jnp.int32)


def mean_bernoulli_kl(reference: Array, logits: Array) -> Array:
    """`1/L sum_l KL(Bernoulli(sigmoid(reference_l)) || Bernoulli(sigmoid(logits_l)))`, `[B]`."""
    return bernoulli_kl(reference, logits) / logits.shape[-1]


def _signed(logits: Array, findings: Array) -> Array:
    """Logits that are positive where the decision is right."""
    return jnp.where(findings > 0, logits, -logits)
