r"""Losses of segmentation, per example; any number of spatial axes.

Outputs are logits `[B, *spatial, C]`, class 0 the background, or what a network with deep supervision
returns while it trains: `{'logits': [B, *spatial, C], 'coarser': (logits at 1/2, 1/4, ... of the size)}`.
`dice_cross_entropy` uses the coarser logits; everything else reads `final_logits` and ignores them.
Targets are classes `[B, *spatial]` int.

Contents: `final_logits`, `pixel_cross_entropy`, `mean_cross_entropy`, `soft_dice`, `soft_iou`,
`dice_cross_entropy` (the loss that trains), `pixel_kl`, `dice_per_class`, `best_dice`, `all_finite`;
`per_example_mean`. What attacks climb is in `pixelwise`.

Example:

    losses = dice_cross_entropy(logits, targets)      # [B], 0 for a sure and right answer
"""
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array, Outputs
from medrobust_jax.losses import consistency
from medrobust_jax.losses.classification import cross_entropy

REDUCTIONS = ('best', 'mean', 'worst')


def final_logits(outputs: Outputs) -> Array:
    """The logits at full size `[B, *spatial, C]`, whether or not coarser ones come with them."""
    return outputs['logits'] if isinstance(outputs, Mapping) else outputs


def pixel_cross_entropy(outputs: Outputs, targets: Array) -> Array:
    """The softmax cross-entropy of every pixel, `[B, *spatial]`, in nats.

    Raises:
      ValueError: where targets are not one class per pixel of the logits.
    """
    logits = final_logits(outputs)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f'logits {logits.shape} need targets {logits.shape[:-1]}, one class per pixel; they are '
                         f'{targets.shape}')
    return cross_entropy(logits, targets)


def mean_cross_entropy(outputs: Outputs, targets: Array) -> Array:
    """The mean of `pixel_cross_entropy` over an example's pixels, `[B]`."""
    return per_example_mean(pixel_cross_entropy(outputs, targets))


def soft_dice(outputs: Outputs, targets: Array, *, smoothing: float = 1.0) -> Array:
    """The soft Dice coefficient, mean over the foreground classes:

        (2 sum_i p_i y_i + s) / (sum_i p_i + sum_i y_i + s),      p the softmax, y the one-hot target

    Args:
      outputs: logits `[B, *spatial, C]`, or with coarser ones.
      targets: `[B, *spatial]` int in [0, C).
      smoothing: s > 0, in pixels [ours]. It defines the coefficient of a class that is absent from the
        target: `s / (sum_i p_i + s)`, 1 only where nothing is predicted.

    Returns:
      `[B]` in (0, 1]; 1 is best.

    References: Milletari et al., V-Net, 3DV 2016, section 3, with sums in place of sums of squares, and
    without the background.
    """
    overlap, total = _overlap_and_total(final_logits(outputs), targets)
    return ((2 * overlap + smoothing) / (total + smoothing)).mean(axis=-1)


def soft_iou(outputs: Outputs, targets: Array, *, smoothing: float = 1.0) -> Array:
    """The soft Jaccard index `(sum p y + s) / (sum p + sum y - sum p y + s)`; arguments as `soft_dice`."""
    overlap, total = _overlap_and_total(final_logits(outputs), targets)
    return ((overlap + smoothing) / (total - overlap + smoothing)).mean(axis=-1)


def dice_cross_entropy(outputs: Outputs, targets: Array, *, smoothing: float = 1.0) -> Array:
    """`1 - soft Dice + mean cross-entropy`, `[B]`, >= 0.

    With coarser logits: the mean of this loss over the sizes with weights 1, 1/2, 1/4, ... from the full
    size on; coarser targets are every second, fourth, ... pixel, which is where strided convolutions are
    centered.

    Args:
      outputs: logits `[B, *spatial, C]`, or `{'logits': ..., 'coarser': (...)}`.
      targets: `[B, *spatial]` int in [0, C).
      smoothing: as `soft_dice`.

    References: Isensee et al., nnU-Net, Nature Methods 18, 2021: the sum of both losses and the weights.
    Differs from it in: Dice per example, not over the batch, since losses are per example; the smoothing.
    """
    coarser = outputs['coarser'] if isinstance(outputs, Mapping) else ()
    total, weights = jnp.zeros(()), 0.0
    for level, logits in enumerate((final_logits(outputs), *coarser)):
        step = slice(None, None, 2**level)
        part = targets[(slice(None), *(step,) * (targets.ndim - 1))]
        one = 1 - soft_dice(logits, part, smoothing=smoothing) + mean_cross_entropy(logits, part)
        total, weights = total + one / 2**level, weights + 1 / 2**level
    return total / weights


def pixel_kl(reference: Outputs, outputs: Outputs) -> Array:
    """`KL(softmax(reference) || softmax(outputs))`, mean over the pixels at full size, `[B]`."""
    return consistency.kl(final_logits(reference), final_logits(outputs))


def dice_per_class(outputs: Outputs, targets: Array) -> tuple[Array, Array]:
    """The Dice of the predicted label map (the largest logit), per foreground class.

        2 |P and T| / (|P| + |T|);      1 where the class is in neither

    Returns:
      `(dice [B, C - 1], in_target [B, C - 1] bool)`, for the classes 1 ... C - 1.
    """
    logits = final_logits(outputs)
    predicted = jnp.argmax(logits, axis=-1)
    counts = [_count(predicted == c) + _count(targets == c) for c in range(1, logits.shape[-1])]
    hits = [_count((predicted == c) & (targets == c)) for c in range(1, logits.shape[-1])]
    in_target = [_count(targets == c) > 0 for c in range(1, logits.shape[-1])]
    total = jnp.stack(counts, axis=-1)
    dice = jnp.where(total > 0, 2 * jnp.stack(hits, axis=-1) / jnp.maximum(total, 1), 1.0)
    return dice, jnp.stack(in_target, axis=-1)


def best_dice(outputs: Outputs, targets: Array, *, over: str = 'best') -> Array:
    """How good a label map is, for criteria: the Dice of the best foreground class, `[B]` in [0, 1].

    Classes that the target does not hold do not take part, whether or not they are predicted. An image
    whose target is all background has the Dice of the background, `2 |P_0| / (|P_0| + n)` of its n
    pixels: 1 where nothing is found, 2/3 where half of the pixels are. 0 where an output is not finite.

    Args:
      outputs: logits `[B, *spatial, C]`, or with coarser ones.
      targets: `[B, *spatial]` int in [0, C).
      over: 'best', 'mean' or 'worst' of the foreground classes in the target.

    Raises:
      ValueError: for an unknown `over`.
    """
    if over not in REDUCTIONS:
        did_you_mean(over, REDUCTIONS, 'reduction over classes')
    dice, present = dice_per_class(outputs, targets)
    if over == 'mean':
        value = jnp.sum(jnp.where(present, dice, 0), axis=-1) / jnp.maximum(present.sum(axis=-1), 1)
    elif over == 'best':
        value = jnp.max(jnp.where(present, dice, 0), axis=-1)
    else:
        value = jnp.min(jnp.where(present, dice, 1), axis=-1)
    empty = _count(jnp.argmax(final_logits(outputs), axis=-1) == 0)
    background = 2 * empty / (empty + targets[0].size)
    value = jnp.where(present.any(axis=-1), value, background)
    return jnp.where(all_finite(outputs), value, 0)


def all_finite(outputs: Outputs) -> Array:
    """Whether every pixel has a decision, `[B]` bool: no NaN or +inf; -inf merely rules a class out."""
    largest = final_logits(outputs).max(axis=-1)  # NaN propagates
    return jnp.isfinite(largest.reshape(largest.shape[0], -1)).all(axis=1)


def per_example_mean(values: Array) -> Array:
    """The mean over all but the first axis, `[B]`."""
    return values.reshape(values.shape[0], -1).mean(axis=1)


def _count(mask: Array) -> Array:
    return mask.reshape(mask.shape[0], -1).sum(axis=1, dtype=jnp.int32).astype(jnp.float32)


def _overlap_and_total(logits: Array, targets: Array) -> tuple[Array, Array]:
    """`sum p y` and `sum p + sum y` per foreground class, `[B, C - 1]` each."""
    p = jax.nn.softmax(logits, axis=-1).reshape(logits.shape[0], -1, logits.shape[-1])
    is_class = targets.reshape(targets.shape[0], -1, 1) == jnp.arange(logits.shape[-1])
    overlap = jnp.sum(jnp.where(is_class, p, 0), axis=1)
    return overlap[:, 1:], (p.sum(axis=1) + is_class.sum(axis=1))[:, 1:]
