"""What attacks on segmentation climb: losses that do not waste themselves on pixels already wrong.

Outputs are logits `[B, *spatial, C]` or those of deep supervision (see `segmentation`), targets classes
`[B, *spatial]` int; each loss is a mean over an example's pixels, `[B]`, and larger is worse for the model.

Contents: `correct_pixels`, `pixel_error`, `masked_cross_entropy`, `balanced_cross_entropy` (SegPGD's),
`cosine_cross_entropy` (CosPGD's), `jensen_shannon`, `masked_normalized_logit`.

Example:

    losses = balanced_cross_entropy(logits, targets, wrong_weight=jnp.full(len(logits), .25))     # [B]
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Outputs
from medrobust_jax.losses.segmentation import final_logits, per_example_mean, pixel_cross_entropy


def correct_pixels(outputs: Outputs, targets: Array) -> Array:
    """Whether the largest logit is the target's, `[B, *spatial]` bool."""
    return jnp.argmax(final_logits(outputs), axis=-1) == targets


def pixel_error(outputs: Outputs, targets: Array) -> Array:
    """The share of pixels that are wrong, background included, `[B]` in [0, 1]; no gradient."""
    return per_example_mean(1 - correct_pixels(outputs, targets).astype(jnp.float32))


def masked_cross_entropy(outputs: Outputs, targets: Array) -> Array:
    """The cross-entropy of the pixels that are still right, summed and divided by all pixels, `[B]`."""
    return per_example_mean(jnp.where(correct_pixels(outputs, targets), pixel_cross_entropy(outputs, targets), 0))


def balanced_cross_entropy(outputs: Outputs, targets: Array, wrong_weight: Array) -> Array:
    """SegPGD's loss: `mean_i w_i CE_i` with w = 1 - lambda on right pixels and lambda on wrong ones.

    Args:
      outputs: logits `[B, *spatial, C]`, or with coarser ones.
      targets: `[B, *spatial]` int.
      wrong_weight: lambda `[B]` in [0, 1].

    References: Gu et al., SegPGD: An Effective and Efficient Adversarial Attack for Evaluating and
    Boosting Segmentation Robustness, ECCV 2022.
    """
    losses = pixel_cross_entropy(outputs, targets)
    share = per_example(wrong_weight, losses)
    return per_example_mean(jnp.where(correct_pixels(outputs, targets), 1 - share, share) * losses)


def cosine_cross_entropy(outputs: Outputs, targets: Array) -> Array:
    """CosPGD's loss: the cross-entropy of every pixel times the cosine between its softmax and its target.

    The cosine `p_y / ||p||_2` is a constant to gradients: pixels count less the more wrong they are.

    References: Agnihotri, Jung, Keuper, CosPGD: An Efficient White-Box Adversarial Attack for Pixel-Wise
    Prediction Tasks, ICML 2024.
    """
    p = jax.lax.stop_gradient(jax.nn.softmax(final_logits(outputs), axis=-1))
    cosine = _at(p, targets) / jnp.sqrt(jnp.sum(p * p, axis=-1))
    return per_example_mean(cosine * pixel_cross_entropy(outputs, targets))


def jensen_shannon(outputs: Outputs, targets: Array) -> Array:
    """The Jensen-Shannon divergence between a pixel's softmax and its one-hot target, mean over pixels.

        log 2 + (p log p - (1 + p) log(1 + p)) / 2,      p the target's probability

    Returns:
      `[B]` in [0, log 2]. The gradient falls to 0 for pixels that are surely wrong.

    References: Croce, Singh, Hein, Towards Reliable Evaluation and Fast Training of Robust Semantic
    Segmentation Models, ECCV 2024.
    """
    log_p = -pixel_cross_entropy(outputs, targets)
    p = jnp.exp(log_p)
    # p log p tends to 0 where log p is -inf.
    entropy = p * jnp.maximum(log_p, -100.0)
    return per_example_mean(jnp.log(2.0) + (entropy - (1 + p) * jnp.log1p(p)) / 2)


def masked_normalized_logit(outputs: Outputs, targets: Array) -> Array:
    """Minus the target's logit over the norm of the logits, on the pixels that are still right; `[B]`.

    `-[argmax z = y] z_y / ||z||_2`, mean over all pixels: a confident network does not hide its
    gradients by the size of its logits. [mem]

    References: as `jensen_shannon`.
    """
    logits = final_logits(outputs)
    size = jnp.sqrt(jnp.sum(logits * logits, axis=-1) + 1e-12)
    return per_example_mean(jnp.where(correct_pixels(outputs, targets), -_at(logits, targets) / size, 0))


def _at(values: Array, targets: Array) -> Array:
    """`values[..., targets]` without a gather."""
    return jnp.sum(jnp.where(jnp.arange(values.shape[-1]) == targets[..., None], values, 0), axis=-1)
