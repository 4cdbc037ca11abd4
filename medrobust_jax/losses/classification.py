"""Losses of single-label classification, per example.

Contents: `cross_entropy`, `margin`, `dlr`, `targeted_margin`, `targeted_dlr`, `targeted_cross_entropy`,
`guided_complement_entropy`, `kl_divergence`, `prediction_is_right`.

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
    return other - _at(logits, labels)


def dlr(logits: Array, labels: Array) -> Array:
    """The difference of logits ratio `(max_{j != y} z_j - z_y) / (z_(1) - z_(3) + 1e-12)`.

    `z_(k)` is the k-th largest logit. Positive exactly where the prediction is wrong; shifting or
    scaling the logits does not change it, so that a confident model does not hide its gradients.

    Args:
      logits: `[B, C]`, C >= 3.
      labels: `[B]` int.

    Returns:
      `[B]`; in [-1, 0] where the prediction is right, in [0, 1] where the label is among the
      three largest, above where it is not.

    Raises:
      ValueError: for fewer than three classes; with two the ratio would be constant.

    References: Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of
    Diverse Parameter-free Attacks, ICML 2020, section 4.
    """
    _check_classes(logits, 3, 'dlr', 'margin')
    first, _, third = _largest(logits, 3)
    return margin(logits, labels) / (first - third + 1e-12)


def targeted_margin(logits: Array, labels: Array, target: Array) -> Array:
    """`z_t - z_y`, which equals the cross-entropy to y minus the one to t; any number of classes.

    Args:
      logits: `[B, C]`.
      labels: `[B]` int, the truth y.
      target: `[B]` int, the wanted class t.

    Returns:
      `[B]`.
    """
    return _at(logits, target) - _at(logits, labels)


def targeted_dlr(logits: Array, labels: Array, target: Array) -> Array:
    """The targeted DLR `(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)`.

    Args:
      logits: `[B, C]`, C >= 4.
      labels: `[B]` int, the truth y.
      target: `[B]` int, the wanted class t.

    Returns:
      `[B]`.

    Raises:
      ValueError: for fewer than four classes.

    References: Croce and Hein, ICML 2020, as `dlr`.
    """
    _check_classes(logits, 4, 'targeted_dlr', 'targeted_margin')
    first, _, third, fourth = _largest(logits, 4)
    return targeted_margin(logits, labels, target) / (first - (third + fourth) / 2 + 1e-12)


def targeted_cross_entropy(logits: Array, labels: Array, target: Array) -> Array:
    """`log softmax(z)_t`: minus the cross-entropy to the target, <= 0; `labels` are not used."""
    del labels
    return -cross_entropy(logits, target)


def guided_complement_entropy(logits: Array, labels: Array, *, alpha: float = 0.333) -> Array:
    """Guided complement entropy `p_y^alpha sum_{j != y} q_j log q_j / log(C - 1)`, `q_j = p_j / (1 - p_y)`.

    A training loss in the place of cross-entropy: it falls where the label's probability rises and where the
    other classes become equally probable, so that none of them is near.

    Args:
      logits: `[B, C]`, C >= 3.
      labels: `[B]` int.
      alpha: of the guiding factor, >= 0; .333 as in the paper. 0 leaves the complement's entropy alone.

    Returns:
      `[B]`, in [-1, 0]; -1 where the label is certain and the others equal.

    Raises:
      ValueError: for two classes, whose complement has one class and no entropy.

    Differs from the published code in: computed from logarithms, without small constants inside them.

    References: Chen et al., Improving Adversarial Robustness via Guided Complement Entropy, ICCV 2019; the
    normalization by log(C - 1) [mem].
    """
    _check_classes(logits, 3, 'guided_complement_entropy', 'cross_entropy')
    others = ~_is_label(logits, labels)
    log_q = jax.nn.log_softmax(logits, axis=-1, where=others)
    # A class that is ruled out adds 0, not 0 * -inf; the label itself is outside of the sum.
    q = jnp.where(others, jnp.exp(jnp.where(others, log_q, 0)), 0)
    negative_entropy = jnp.sum(q * jnp.where(q > 0, log_q, 0), axis=-1)
    guide = jnp.exp(-alpha * cross_entropy(logits, labels))
    return guide * negative_entropy / jnp.log(logits.shape[-1] - 1)


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


def _at(logits: Array, labels: Array) -> Array:
    """`logits[b, labels[b]]` without a gather, see `cross_entropy`."""
    return jnp.sum(jnp.where(_is_label(logits, labels), logits, 0), axis=-1)


def _largest(logits: Array, count: int) -> list[Array]:
    """The `count` largest logits in falling order, `[B]` each; equal logits take separate places."""
    found = []
    for _ in range(count):
        index = jnp.argmax(logits, axis=-1)
        found.append(_at(logits, index))
        logits = jnp.where(_is_label(logits, index), -jnp.inf, logits)
    return found


def _check_classes(logits: Array, fewest: int, name: str, instead: str) -> None:
    if logits.shape[-1] < fewest:
        raise ValueError(f'{name} needs at least {fewest} classes, not {logits.shape[-1]}: use {instead}')
