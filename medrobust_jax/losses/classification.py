"""Losses of single-label classification, per example.

Contents: `cross_entropy`, `margin`, `kl_divergence`, `prediction_is_right`.

Example:

    losses = cross_entropy(logits, labels, label_smoothing=0.1)     # [B]
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array


def cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
    """Softmax cross-entropy `-sum_c q_c log softmax(z)_c`, with `q` the smoothed one-hot label.

    Args:
      logits: `[B, C]`.
      labels: `[B]` int in [0, C).
      label_smoothing: a in [0, 1); `q = (1 - a) onehot + a / C`.

    Returns:
      `[B]`, in nats, >= 0.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    # A one-hot product instead of a gather: it also runs where the class axis is sharded.
    right = jnp.sum(jnp.where(_is_label(logits, labels), log_p, 0), axis=-1)
    if label_smoothing == 0:
        return -right
    return -(1 - label_smoothing) * right - label_smoothing * log_p.mean(axis=-1)


def margin(logits: Array, labels: Array) -> Array:
    """`max_{j != y} z_j - z_y`: positive exactly where the prediction is wrong (ties aside).

    The attack loss of Carlini and Wagner (S&P 2017) without its confidence offset. Defined for two
    classes and more, unlike DLR.

    Args:
      logits: `[B, C]`.
      labels: `[B]` int.

    Returns:
      `[B]`.
    """
    is_label = _is_label(logits, labels)
    other = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return other - jnp.sum(jnp.where(is_label, logits, 0), axis=-1)


def kl_divergence(reference: Array, logits: Array) -> Array:
    """`KL(softmax(reference) || softmax(logits))` over the last axis.

    Args:
      reference: `[B, C]` logits.
      logits: `[B, C]` logits.

    Returns:
      `[B]`, in nats, >= 0 up to rounding.
    """
    log_p, log_q = jax.nn.log_softmax(reference, axis=-1), jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    # A class that the reference rules out (logit -inf) adds 0, not 0 * (inf - inf).
    log_ratio = jnp.where(p > 0, log_p, 0) - jnp.where(p > 0, log_q, 0)
    return jnp.sum(p * log_ratio, axis=-1)


def prediction_is_right(logits: Array, labels: Array) -> Array:
    """Whether the largest logit is the label's, `[B]` bool; NaN or +inf among the logits is never right."""
    finite = jnp.isfinite(logits.max(axis=-1))  # NaN propagates; -inf merely rules a class out
    return finite & (jnp.argmax(logits, axis=-1) == labels)


def _is_label(logits: Array, labels: Array) -> Array:
    return jnp.arange(logits.shape[-1]) == labels[..., None]
