r"""Losses of landmark detection by heatmaps and offset maps, per example.

A network's maps `[B, H, W, 3P]` hold, for each of P landmarks, a heat logit and the offset to the
landmark in x and y, see `core.heatmaps`. Targets are points `[B, P, 2]`, fractions of width and height.

Contents: `landmark_loss`, `head_divergence`.

Example:

    losses = landmark_loss(maps, points, radius_fraction=.05)      # [B]

References:
  Ma et al., arXiv 2206.01736, and the authors' code, for what is marked [code].
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.heatmaps import disk_maps, radius_of, split_maps
from medrobust_jax.core.types import Array


def landmark_loss(maps: Array, points: Array, *, radius_fraction: float) -> Array:
    """`L1x + L1y + 2 BCE` [code].

    BCE is the mean over all pixels and landmarks of the heat's binary cross-entropy with the disk;
    L1x and L1y are the mean absolute errors of the offsets, in radii, over the pixels of all disks.

    Args:
      maps: `[B, H, W, 3P]`.
      points: `[B, P, 2]`; one so far outside the image that its disk is empty adds nothing to L1.
      radius_fraction: the disk's radius as a fraction of the height.

    Returns:
      `[B]` >= 0.

    Raises:
      ValueError: when maps and points disagree about P.
    """
    logits, offsets = split_maps(maps)
    if logits.shape[-1] != points.shape[1]:
        raise ValueError(f'maps {maps.shape} are for {logits.shape[-1]} landmarks, '
                         f'the targets have {points.shape[1]}')
    size = maps.shape[1], maps.shape[2]
    heat, true = disk_maps(points.astype(maps.dtype), size=size, radius=radius_of(size[0], radius_fraction))
    cross_entropy = -jax.nn.log_sigmoid(jnp.where(heat > 0, logits, -logits)).mean(axis=(1, 2, 3))
    off = (heat * jnp.abs(offsets - true).sum(-1)).sum(axis=(1, 2, 3)) / jnp.maximum(heat.sum(axis=(1, 2, 3)), 1)
    return off + 2 * cross_entropy


def head_divergence(reference: Array, maps: Array) -> Array:
    """`KL(softmax(reference) || softmax(maps))` of each head's flattened maps, added up, `[B]` [code].

    The heads are heat, x offsets and y offsets. It is the divergence of the authors' TRADES on
    landmarks: large where a head moves its weight between pixels or landmarks, blind to a constant
    added to all of a head.
    """
    def log_shares(array: Array) -> Array:
        heads = jnp.moveaxis(array.reshape(*array.shape[:-1], 3, -1), -2, 1)
        return jax.nn.log_softmax(heads.reshape(len(array), 3, -1), axis=-1)

    log_p, log_q = log_shares(reference), log_shares(maps)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=(1, 2))
