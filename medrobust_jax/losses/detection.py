"""Losses of an anchor-free detector, per image: where, whether, and what.

Outputs are maps as `core.anchors` describes, targets a dict of 'boxes' `[B, M, 4]` in fractions,
'box_labels' `[B, M]` and 'box_mask' `[B, M]`.

Contents: `Parts`, `detection_parts`, `detection_loss`, `detection_divergence`.

Example:

    parts = detection_parts(outputs, targets)                 # .box, .objectness, .classes, each [B]
    losses = detection_loss(outputs, targets, weights=(1., 1., 1.))
"""
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medrobust_jax.core import boxes as box_math
from medrobust_jax.core.anchors import Points, assign, decode, flatten, points_of
from medrobust_jax.core.types import Array
from medrobust_jax.losses.classification import cross_entropy, kl_divergence


class Parts(NamedTuple):
    """The three losses of an image, each `[B]` and >= 0.

    Attributes:
      box: mean over positive points of 1 - GIoU, in [0, 2]; 0 for an image without objects.
      objectness: the sum over points of the focal loss, over the number of positive points (at least 1).
      classes: mean over positive points of the softmax cross-entropy; 0 for an image without objects.
    """

    box: Array
    objectness: Array
    classes: Array


def detection_parts(outputs: Sequence[Array], targets: Mapping[str, Array]) -> Parts:
    """The losses of boxes, objectness and classes.

    Which point shall find which box is geometry (`anchors.assign`) and does not depend on the outputs. With
    the centerness c of a positive point, 0 elsewhere, as target and o the objectness, the focal loss is

        (c - o)^2 BCE(o, c)

    Args:
      outputs: maps `[B, h, w, 5 + C]`, one per level, finest first.
      targets: 'boxes', 'box_labels', 'box_mask'; boxes are clipped to the image, those without area ignored.

    Returns:
      `Parts`, `[B]` each.

    References: Tian et al., FCOS, ICCV 2019, eq. 2; Rezatofighi et al., CVPR 2019; Li et al., Generalized
    Focal Loss, NeurIPS 2020, eq. 2 (beta 2).
    """
    points = points_of(outputs)
    parts = jax.vmap(partial(_parts_of_image, points))
    return parts(flatten(outputs), targets['boxes'], targets['box_labels'], targets['box_mask'])


def detection_loss(outputs: Sequence[Array], targets: Mapping[str, Array], *,
                   weights: tuple[float, float, float] = (1., 1., 1.)) -> Array:
    """The weighted sum of the parts, `[B]`; the weights of box, objectness and classes are 1 each [ours]."""
    parts = detection_parts(outputs, targets)
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))  # type: ignore[return-value]


def detection_divergence(reference: Sequence[Array], outputs: Sequence[Array]) -> Array:
    """How far detections are from reference detections; zero when equal.

        1/n sum_a KL(Bernoulli(o_a) || Bernoulli(o'_a)) + o_a [KL(p_a || p'_a) + mean (r_a - r'_a)^2]

    with objectness o, class probabilities p and raw distances r of point a, and n = max(1, sum_a o_a), the
    number of points at which the reference sees an object; n and the weights o_a are constants to gradients.
    Classes and boxes so count where the reference sees something [ours].

    Args:
      reference: maps `[B, h, w, 5 + C]`.
      outputs: maps of the same shapes.

    Returns:
      `[B]`, >= 0.
    """
    a, b = flatten(reference), flatten(outputs)
    weight = jax.lax.stop_gradient(jax.nn.sigmoid(a[..., 0]))
    presence = _bernoulli_kl(a[..., 0], b[..., 0])
    content = kl_divergence(a[..., 5:], b[..., 5:]) + jnp.square(a[..., 1:5] - b[..., 1:5]).mean(axis=-1)
    return jnp.sum(presence + weight * content, axis=-1) / jnp.maximum(weight.sum(axis=-1), 1)


def _parts_of_image(points: Points, raw: Array, boxes: Array, labels: Array, mask: Array) -> Parts:
    """`raw` [A, 5 + C], `boxes` [M, 4], `labels` and `mask` [M]; three scalars."""
    chosen = assign(points, boxes, mask)
    count = jnp.maximum(chosen.positive.sum(), 1)
    overlap = box_math.giou(decode(raw[:, 1:5], points), box_math.clip(boxes)[chosen.box])
    objectness = _focal(raw[:, 0], chosen.centerness).sum()
    classes = cross_entropy(raw[:, 5:], labels[chosen.box])
    return Parts(jnp.sum(jnp.where(chosen.positive, 1 - overlap, 0)) / count, objectness / count,
                 jnp.sum(jnp.where(chosen.positive, classes, 0)) / count)


def _focal(logits: Array, target: Array) -> Array:
    cross = -target * jax.nn.log_sigmoid(logits) - (1 - target) * jax.nn.log_sigmoid(-logits)
    return jnp.square(target - jax.nn.sigmoid(logits)) * cross


def _bernoulli_kl(reference: Array, logits: Array) -> Array:
    p = jax.nn.sigmoid(reference)
    yes = jax.nn.log_sigmoid(reference) - jax.nn.log_sigmoid(logits)
    no = jax.nn.log_sigmoid(-reference) - jax.nn.log_sigmoid(-logits)
    return p * yes + (1 - p) * no
