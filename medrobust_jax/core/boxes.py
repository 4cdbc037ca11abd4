"""Upright boxes: areas, overlaps, and non-maximum suppression with a fixed number of outputs.

A box is (x_min, y_min, x_max, y_max), in any unit; overlaps do not depend on it, nor on x and y having the
same one. The rule for boxes that are none: a side that is zero or inverted (x_max <= x_min) makes the area
0, and a box of area 0 overlaps nothing. Here everything is finite then; who reads data refuses or drops them.

Contents: `area`, `clip`, `iou`, `pairwise_iou`, `giou`, `Kept`, `suppress`.

Example:

    overlaps = pairwise_iou(detected, true)                              # [N, 4], [M, 4] -> [N, M]
    kept = suppress(boxes, scores, classes, num_outputs=50)              # fields [50, ...]
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array


class Kept(NamedTuple):
    """What is left after suppression, best score first.

    Attributes:
      boxes: `[K, 4]`; zeros where not valid.
      scores: `[K]`; 0 where not valid.
      classes: `[K]` int32; 0 where not valid.
      valid: `[K]` bool, True for the detections, which come first.
    """

    boxes: Array
    scores: Array
    classes: Array
    valid: Array


def area(boxes: Array) -> Array:
    """The areas `[...]` of boxes `[..., 4]`; 0 where a side is zero or inverted."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def clip(boxes: Array) -> Array:
    """The parts `[..., 4]` of boxes, in fractions of the image, that lie in it."""
    return jnp.clip(boxes, 0., 1.)


def iou(first: Array, second: Array) -> Array:
    """Intersection over union of boxes `[..., 4]`, pair by pair: `[...]` in [0, 1]."""
    overlap, union = _overlap_and_union(first, second)
    return overlap / jnp.where(union > 0, union, 1)


def pairwise_iou(first: Array, second: Array) -> Array:
    """The overlaps of all pairs: `[N, 4]` and `[M, 4]` to `[N, M]`."""
    return iou(first[:, None], second[None])


def giou(first: Array, second: Array) -> Array:
    """Generalized IoU, which also has a gradient where boxes lie apart.

        IoU - (|C| - |union|) / |C|,     C the smallest box around both

    Args:
      first: `[..., 4]`.
      second: `[..., 4]`.

    Returns:
      `[...]` in [-1, 1]; 0 where C has no area.

    References: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, algorithm 1.
    """
    overlap, union = _overlap_and_union(first, second)
    corner = jnp.minimum(first[..., :2], second[..., :2])
    opposite = jnp.maximum(first[..., 2:], second[..., 2:])
    hull = area(jnp.concatenate([corner, opposite], axis=-1))
    safe_union, safe_hull = (jnp.where(value > 0, value, 1) for value in (union, hull))
    return overlap / safe_union - jnp.where(hull > 0, hull - union, 0) / safe_hull


def suppress(boxes: Array, scores: Array, classes: Array, *, num_outputs: int, max_iou: float = .5,
             min_score: float = 0., num_candidates: int = 256) -> Kept:
    """Greedy non-maximum suppression within classes; jit-able, its shapes are fixed.

    Candidates are taken by falling score; each is kept unless it overlaps a kept one of its class by more than
    `max_iou`. NaN scores count as 0.

    Args:
      boxes: `[A, 4]`.
      scores: `[A]` >= 0.
      classes: `[A]` int.
      num_outputs: K, how many are returned.
      max_iou: the largest overlap of two that are kept, in [0, 1].
      min_score: detections of this score or less are no candidates.
      num_candidates: how many of the highest scores are looked at.

    Returns:
      `Kept` with K rows.
    """
    scores = jnp.where(jnp.isnan(scores), 0., scores)
    top, index = jax.lax.top_k(scores, min(num_candidates, scores.shape[0]))
    boxes, classes = boxes[index], classes[index]
    clashes = (pairwise_iou(boxes, boxes) > max_iou) & (classes[:, None] == classes[None])
    ranks = jnp.arange(len(top))

    def visit(rank: Array, kept: Array) -> Array:
        beaten = jnp.any(clashes[rank] & kept & (ranks < rank))
        return kept.at[rank].set(kept[rank] & ~beaten)

    kept = jax.lax.fori_loop(0, len(top), visit, top > min_score)
    # Kept ones first, each group by falling score; fewer candidates than outputs are filled up.
    order = jnp.argsort(~kept, stable=True)[:num_outputs]
    missing = num_outputs - len(order)
    valid = jnp.pad(kept[order], (0, missing))
    rows = jnp.pad(order, (0, missing))
    return Kept(jnp.where(valid[:, None], boxes[rows], 0), jnp.where(valid, top[rows], 0),
                jnp.where(valid, classes[rows], 0).astype(jnp.int32), valid)


def _overlap_and_union(first: Array, second: Array) -> tuple[Array, Array]:
    inner = jnp.concatenate([jnp.maximum(first[..., :2], second[..., :2]),
                             jnp.minimum(first[..., 2:], second[..., 2:])], axis=-1)
    # An inverted box could meet another one in a proper rectangle: its area decides.
    sizes = area(first), area(second)
    overlap = jnp.where((sizes[0] > 0) & (sizes[1] > 0), area(inner), 0)
    return overlap, sizes[0] + sizes[1] - overlap
