"""The points of an anchor-free detector: where they lie, what boxes they say, which box each shall find.

A detector's outputs are one map `[B, h, w, 5 + C]` per pyramid level, finest level first. Cell (i, j) of a
level stands for the point ((j + 1/2) / w, (i + 1/2) / h), in fractions of the image. Of its channels

* 0 is the logit of objectness,
* 1 to 4 say the distances to the box's left, top, right and bottom side: softplus(raw) cells,
* 5 and on are logits of the C classes.

Contents: `Points`, `points_of`, `flatten`, `decode`, `Assignment`, `assign`.

Example:

    raw, points = flatten(outputs), points_of(outputs)                   # [B, A, 5 + C], A points
    boxes = decode(raw[..., 1:5], points)                                # [B, A, 4]
    chosen = jax.vmap(partial(assign, points))(true_boxes, box_mask)     # which box each point shall find
"""
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core import boxes as box_math
from medrobust_jax.core.types import Array

NUM_BOX_CHANNELS = 5  # objectness and four distances, before the classes
MAX_CELLS = 4.  # a box goes to the finest level on which its longer side has at most this many cells [ours]
RADIUS = 1.5  # points up to this many cells from the box's center look for it (FCOS's center sampling)


class Points(NamedTuple):
    """The points of all levels, one after another.

    Attributes:
      centers: `[A, 2]`, (x, y) in fractions.
      cells: `[A, 2]`, the width and height of a point's cell in fractions.
      levels: `[A]` int, 0 is the finest.
    """

    centers: np.ndarray
    cells: np.ndarray
    levels: np.ndarray


class Assignment(NamedTuple):
    """Which box each point of one image shall find.

    Attributes:
      positive: `[A]` bool.
      box: `[A]` int32, the row of its box; any where not positive.
      centerness: `[A]` in [0, 1], 1 at the box's center; 0 where not positive.
    """

    positive: Array
    box: Array
    centerness: Array


def points_of(outputs: Sequence[Array]) -> Points:
    """The points of maps `[B, h, w, ...]`; constants, taken from the shapes alone."""
    centers, cells, levels = [], [], []
    for level, output in enumerate(outputs):
        height, width = output.shape[1:3]
        x, y = np.meshgrid((np.arange(width) + .5) / width, (np.arange(height) + .5) / height)
        centers.append(np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float32))
        cells.append(np.tile(np.array([1 / width, 1 / height], np.float32), (height * width, 1)))
        levels.append(np.full(height * width, level))
    return Points(np.concatenate(centers), np.concatenate(cells), np.concatenate(levels))


def flatten(outputs: Sequence[Array]) -> Array:
    """Maps `[B, h, w, 5 + C]` of all levels as one array `[B, A, 5 + C]`.

    Raises:
      ValueError: for fewer than six channels.
    """
    if outputs[0].shape[-1] <= NUM_BOX_CHANNELS:
        raise ValueError(f'a detector has 5 + num_classes output channels, not {outputs[0].shape[-1]}: '
                         'set num_outputs of the model to the task\'s')
    return jnp.concatenate([output.reshape(len(output), math.prod(output.shape[1:-1]), output.shape[-1])
                            for output in outputs], axis=1)


def decode(raw: Array, points: Points) -> Array:
    """The boxes `[..., A, 4]` that raw distances `[..., A, 4]` say; never inverted."""
    distances = jax.nn.softplus(raw)
    low = points.centers - distances[..., :2] * points.cells
    return jnp.concatenate([low, points.centers + distances[..., 2:] * points.cells], axis=-1)


def assign(points: Points, boxes: Array, mask: Array) -> Assignment:
    """Which box each point of one image shall find, by geometry alone.

    A box belongs to the finest level on which its longer side has at most 4 cells, to the coarsest if there
    is none. The points that look for it are those of that level inside the box and at most 1.5 cells from its
    center in x and in y, and always the one whose cell holds the center. A point with several such boxes takes
    the one whose center is nearest, in units of that box's sides.

    Boxes are clipped to the image first; those of zero area or inverted are nobody's, like padding.

    Args:
      points: A points.
      boxes: `[M, 4]` in fractions; M >= 1.
      mask: `[M]` bool, False on padding.

    Returns:
      An `Assignment` with A rows.

    Differs from FCOS in: levels go by a box's size in cells, so that images of any size use all levels [ours];
    nearest center instead of smallest area, since neighboring cells of one kind are of one size [ours].

    References: Tian et al., FCOS, ICCV 2019, sections 3.1-3.3 (eq. 3 for centerness).
    """
    boxes = box_math.clip(boxes)
    exists = mask & (box_math.area(boxes) > 0)
    sides = jnp.where(exists[:, None], boxes[:, 2:] - boxes[:, :2], 1.)
    offset = points.centers[:, None] - (boxes[:, :2] + boxes[:, 2:])[None] / 2  # [A, M, 2]
    in_cells = jnp.abs(offset) / points.cells[:, None]
    distances = jnp.concatenate([points.centers[:, None] - boxes[None, :, :2],
                                 boxes[None, :, 2:] - points.centers[:, None]], axis=-1)  # [A, M, 4]
    near = jnp.all(in_cells <= RADIUS, axis=-1) & jnp.all(distances > 0, axis=-1)
    looks = near | jnp.all(in_cells <= .5, axis=-1)
    looks &= exists[None] & (points.levels[:, None] == _levels(points, sides)[None])
    far = jnp.where(looks, jnp.square(offset / sides[None]).sum(axis=-1), jnp.inf)
    chosen, positive = jnp.argmin(far, axis=1), jnp.any(looks, axis=1)
    own = jnp.take_along_axis(distances, chosen[:, None, None], axis=1)[:, 0]
    low, high = jnp.minimum(own[:, :2], own[:, 2:]), jnp.maximum(own[:, :2], own[:, 2:])
    # A center's own cell may have its point outside of a small box: at least a tenth, as it must be found.
    ratio = jnp.clip(low / jnp.where(high > 0, high, 1.), .01, 1.)
    centerness = jnp.sqrt(ratio[:, 0] * ratio[:, 1])
    return Assignment(positive, chosen.astype(jnp.int32), jnp.where(positive, jnp.maximum(centerness, .1), 0.))


def _levels(points: Points, sides: Array) -> Array:
    """The level `[M]` of boxes with these sides `[M, 2]`."""
    count = int(points.levels[-1]) + 1
    cells = np.stack([points.cells[points.levels == level][0] for level in range(count)])  # [levels, 2]
    too_long = jnp.max(sides[:, None] / cells[None], axis=-1) > MAX_CELLS  # [M, levels]
    return jnp.minimum(jnp.sum(too_long, axis=1), count - 1)
