r"""Losses of shape regression: boundary points and the mask that they enclose, from one network.

Outputs are a dict of 'points' `[B, P, 2]`, (x, y) as fractions of width and height, 'mask'
`[B, H, W]`, logits of the foreground, and, of networks that reconstruct their input,
'reconstruction_error' `[B]`, the mean of |rec(x) - x|. Targets are a dict of 'points' and
'segmentation' `[B, H, W]`, in which every class above 0 is foreground.

Contents: `shape_loss` (what training minimizes) and its terms `point_loss`, `mask_loss`, which the
attacks in training climb; what those of an evaluation climb, `shape_regression_attack_loss` and
`shape_mask_attack_loss`; `output_distance` (between two outputs, which the out-of-distribution attack
closes), `shape_divergence`, `soft_dice`.

Example:

    losses = shape_loss(outputs, {'points': points, 'segmentation': masks})     # [B]

References:
  arXiv 2102.02885 and its authors' code, for what is marked [code].
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array, Outputs, Targets


def shape_loss(outputs: Outputs, targets: Targets) -> Array:
    """`point_loss + mask_loss`, plus the reconstruction error where the network has one, `[B]`.

    References: the clean loss (BCE + 1 - Dice) / 2 + MAE [code]; the weight 1 of the reconstruction
    is ours.
    """
    loss = point_loss(outputs, targets) + mask_loss(outputs, targets)
    return loss + outputs['reconstruction_error'] if 'reconstruction_error' in outputs else loss


def point_loss(outputs: Outputs, targets: Targets) -> Array:
    """The mean absolute error of all coordinates, `[B]`, in fractions of width and height."""
    return jnp.abs(outputs['points'] - targets['points']).mean(axis=(1, 2))


def mask_loss(outputs: Outputs, targets: Targets) -> Array:
    """`(BCE + 1 - Dice) / 2`, `[B]`: the mean binary cross-entropy of the pixels and the soft Dice."""
    foreground = _foreground(outputs, targets)
    logits = outputs['mask']
    cross_entropy = -jax.nn.log_sigmoid(jnp.where(foreground, logits, -logits)).mean(axis=(1, 2))
    return (cross_entropy + 1 - soft_dice(jax.nn.sigmoid(logits), foreground)) / 2


def shape_regression_attack_loss(outputs: Outputs, targets: Targets) -> Array:
    """The squared error summed over all coordinates, `[B]`: climbed to move the points [code]."""
    return jnp.square(outputs['points'] - targets['points']).sum(axis=(1, 2))


def shape_mask_attack_loss(outputs: Outputs, targets: Targets) -> Array:
    """`1 - Dice` of the mask's probabilities, `[B]`: climbed to spoil the mask [code]."""
    return 1 - soft_dice(jax.nn.sigmoid(outputs['mask']), _foreground(outputs, targets))


def output_distance(outputs: Outputs, wanted: Outputs) -> Array:
    """How far outputs are from the `wanted` outputs of another image, `[B]`.

        MSE(points) + 1 - Dice(masks) + reconstruction error of the image itself (where there is one)

    The mean runs over all coordinates, in fractions of width and height; both masks enter as
    probabilities [code], so that it is 0 only where they are certain: equal masks that are not have a
    Dice below 1.
    """
    squared = jnp.square(outputs['points'] - wanted['points']).mean(axis=(1, 2))
    dice = soft_dice(jax.nn.sigmoid(outputs['mask']), jax.nn.sigmoid(wanted['mask']))
    distance = squared + 1 - dice
    return distance + outputs['reconstruction_error'] if 'reconstruction_error' in outputs else distance


def shape_divergence(reference: Outputs, outputs: Outputs) -> Array:
    """How far `outputs` are from `reference`, `[B]` >= 0, zero where points and masks are equal [ours].

    The mean absolute difference of the coordinates plus the pixels' mean Bernoulli KL, the
    counterparts of the two terms of `shape_loss`.
    """
    moved = jnp.abs(reference['points'] - outputs['points']).mean(axis=(1, 2))
    p, q = reference['mask'], outputs['mask']
    share = jax.nn.sigmoid(p)
    kl = (share * (jax.nn.log_sigmoid(p) - jax.nn.log_sigmoid(q))
          + (1 - share) * (jax.nn.log_sigmoid(-p) - jax.nn.log_sigmoid(-q)))
    return moved + kl.mean(axis=(1, 2))


def soft_dice(share: Array, truth: Array, *, smooth: float = 1.0) -> Array:
    """`(2 sum s t + smooth) / (sum s + sum t + smooth)` of one mask against another.

    Args:
      share: `[B, *spatial]` in [0, 1].
      truth: `[B, *spatial]`, bool or in [0, 1].
      smooth: in pixels, so that two empty masks agree; 1 is ours.

    Returns:
      `[B]` in [0, 1].
    """
    axes = tuple(range(1, share.ndim))
    truth = truth.astype(share.dtype)
    return (2 * (share * truth).sum(axes) + smooth) / (share.sum(axes) + truth.sum(axes) + smooth)


def _foreground(outputs: Outputs, targets: Targets) -> Array:
    """`[B, H, W]` bool.

    Raises:
      ValueError: when the mask and the segmentation differ in size.
    """
    if outputs['mask'].shape != targets['segmentation'].shape:
        raise ValueError(f"the mask {outputs['mask'].shape} and the segmentation "
                         f"{targets['segmentation'].shape} must have one shape [B, H, W]")
    return targets['segmentation'] > 0
