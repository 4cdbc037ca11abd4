r"""The moves of the Square attack, as functions of their draws.

    linf    x' = clip(x_best + 2 eps s_c on one square window): the ball's corners, s_c = +-1 per channel
    l2, l1  a bump of two halves of opposite sign is added in one window, another window is emptied,
            and the first takes over its size; the perturbation then has norm eps

Contents: `Window`, `NUM_LEVELS`, `sides`, `level_of`, `linf_start`, `linf_move`; for l2 and l1 `Bumps`,
`make_bumps`, `tiling`, `bump_start`, `BumpDraws`, `bump_move`.

Sizes are data: a window's side and its position differ from example to example, and nothing is compiled
anew. Images are `[B, H, W, C]`.

Example:

    side = jnp.asarray(sides(28, 28, p=.8, norm='linf'))[level_of(queries)]
    images = linf_move(clean, best, eps, Window(top, left, side), signs)
"""
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from medrobust_jax.attacks.apgd_l1 import project_to_ball_and_box
from medrobust_jax.core import balls
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries [code]
NUM_LEVELS = len(_HALVED_AFTER) + 1
_TINY = 1e-12  # beside norms that are divided by [code]


class Window(NamedTuple):
    """Square windows, one per example: the first row, the first column and the side, `[B]` int32 each."""

    top: Array
    left: Array
    side: Array


def sides(height: int, width: int, *, p: float, norm: str) -> list[int]:
    """The window's side at each level of the schedule: `round(sqrt(p H W))` with p halved from level to level.

    At least 1 in linf; at least 3 and odd in l2 and l1; at most the image's shorter side.
    """
    least = 1 if norm == 'linf' else 3
    found = [max(round(math.sqrt(p / 2 ** level * height * width)), least) for level in range(NUM_LEVELS)]
    return [min(side if norm == 'linf' else side + 1 - side % 2, height, width) for side in found]


def level_of(query: Array, budget: int = 10000) -> Array:
    """The schedule's level `[B]` at a query `[B]`, from 0 without the start; stretched by budget / 10000."""
    first = [math.ceil((last + 1) * budget / 10000) for last in _HALVED_AFTER]
    return jnp.sum(query[:, None] >= jnp.asarray(first), axis=1)


def _inside(window: Window, shape: tuple[int, ...]) -> Array:
    """`[B, H, W, 1]` bool."""
    def along(first: Array, size: int) -> Array:
        position = jnp.arange(size) - first[:, None]
        return (position >= 0) & (position < window.side[:, None])
    return (along(window.top, shape[1])[:, :, None] & along(window.left, shape[2])[:, None, :])[..., None]


def linf_start(images: Array, eps: Array, signs: Array) -> Array:
    """Vertical stripes: `signs` `[B, 1, W, C]` times eps `[B]`, clipped to the box."""
    return balls.to_box(images + per_example(eps, images) * signs.astype(images.dtype))


def linf_move(images: Array, best: Array, eps: Array, window: Window, signs: Array) -> Array:
    """Adds 2 eps times `signs` `[B, C]` to `best` in the window, and clips to the ball and the box."""
    radius = per_example(eps, images)
    change = 2 * radius * signs[:, None, None, :].astype(images.dtype)
    moved = jnp.where(_inside(window, images.shape), best + change, best)
    return balls.to_box(jnp.clip(moved, images - radius, images + radius))


class Bumps(NamedTuple):
    """Bumps of several sides, `[L, ...]`, on the host.

    A bump's upper half (s // 2 rows) and lower half have their own centers and unit norm each, the
    lower one negative, and the whole has unit norm. Within a half its height depends on the
    Chebyshev distance k to the center alone: `sum_{m >= k} (m + 1)^-q` up to m = s // 2, with q = 2
    in l2 and 4 in l1.

    Attributes:
      sides: `[L]` int, s.
      heights: `[L, K]`, by distance.
      scales: `[L, 2]`, of the upper half and of the lower one.
    """

    sides: np.ndarray
    heights: np.ndarray
    scales: np.ndarray


def _norm(values: np.ndarray, norm: str) -> float:
    return float(np.linalg.norm(values.ravel(), ord={'l2': 2, 'l1': 1}[norm]))


def make_bumps(side_list: Sequence[int], *, norm: str) -> Bumps:
    """The bumps of these sides, each >= 1."""
    power = {'l2': 2, 'l1': 4}[norm]
    heights, scales = np.zeros((len(side_list), max(side_list) // 2 + 2)), np.zeros((len(side_list), 2))
    for row, side in enumerate(side_list):
        last = side // 2 + 1
        heights[row, :last] = np.cumsum(1. / np.arange(last, 0, -1) ** power)[::-1]
        across = abs(np.arange(side) - side // 2)
        for half, rows in enumerate((side // 2, side - side // 2)):
            if rows:
                down = abs(np.arange(rows) - rows // 2)
                size = _norm(heights[row][np.maximum(down[:, None], across)], norm)
                scales[row, half] = (-1) ** half / size
        scales[row] /= _norm(np.ones(1 if side == 1 else 2), norm)
    return Bumps(np.asarray(side_list), heights, scales)


def _bump_images(bumps: Bumps, level: Array, window: Window, transposed: Array, images: Array) -> Array:
    """The bumps in place, `[B, H, W, 1]`, garbage outside the window.

    The height at a distance is the lower of the heights at its two coordinates' distances, so two
    vectors per example hold everything.
    """
    heights, scales = (jnp.asarray(table, images.dtype) for table in (bumps.heights, bumps.scales))
    half = (window.side // 2)[:, None]

    def height(distance: Array) -> Array:
        return heights[level[:, None], jnp.clip(jnp.abs(distance), 0, heights.shape[1] - 1)]

    def along(position: Array, halved: Array) -> tuple[Array, Array]:
        lower = position >= half
        center = jnp.where(lower, half + (window.side[:, None] - half) // 2, half // 2)
        scale = jnp.where(lower, scales[level, 1:], scales[level, :1])
        return (jnp.where(halved, height(position - center), height(position - half)),
                jnp.where(halved, scale, 1))

    turned = transposed[:, None]
    down, down_scale = along(jnp.arange(images.shape[1]) - window.top[:, None], ~turned)
    across, across_scale = along(jnp.arange(images.shape[2]) - window.left[:, None], turned)
    low = jnp.minimum(down[:, :, None], across[:, None, :])
    return (low * down_scale[:, :, None] * across_scale[:, None, :])[..., None]


def tiling(height: int, width: int) -> tuple[int, int, int, int]:
    """The start's tiles: their side (a fifth of the height), the offset in both axes, and their numbers."""
    side = min(max(height // 5, 1), width)
    offset = max((height - 5 * side) // 2, 0)
    return side, offset, (height - offset) // side, max((width - offset) // side, 1)


def bump_start(images: Array, eps: Array, transposed: Array, signs: Array, *, norm: str) -> Array:
    """A bump per tile.

    Args:
      images: `[B, H, W, C]`.
      eps: `[B]`.
      transposed: `[B, rows, columns]` bool, per tile.
      signs: `[B, rows, columns, C]`, +-1.
      norm: 'l2' or 'l1'.
    """
    batch, height, width, channels = images.shape
    side, offset, rows, columns = tiling(height, width)
    bumps = make_bumps([side], norm=norm)
    zero = jnp.zeros(batch * rows * columns, jnp.int32)
    like = jnp.zeros((1, side, side, 1), images.dtype)
    tiles = _bump_images(bumps, zero, Window(zero, zero, zero + side), transposed.reshape(-1), like)
    tiles = tiles.reshape(batch, rows, columns, side, side, 1) * signs[:, :, :, None, None, :].astype(images.dtype)
    tiles = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * side, columns * side, channels)
    after = [max(size - offset - n * side, 0) for size, n in ((height, rows), (width, columns))]
    delta = jnp.pad(tiles, ((0, 0), (offset, after[0]), (offset, after[1]), (0, 0)))[:, :height, :width]
    return _to_sphere(images, delta, eps, norm=norm)


class BumpDraws(NamedTuple):
    """What one l2 or l1 move draws: two windows of one side, `transposed` `[B]` bool, `signs` `[B, C]`."""

    first: Window
    second: Window
    transposed: Array
    signs: Array


def bump_move(images: Array, best: Array, eps: Array, bumps: Bumps, level: Array, draws: BumpDraws, *,
              norm: str) -> Array:
    """Adds a bump in the first window, empties the second, and moves what the two held, and what the ball leaves,
    to the first, each channel by its own size."""
    def sizes(delta: Array) -> Array:
        return _sizes(delta, (1, 2), norm)

    delta, channels = best - images, images.shape[-1]
    inside, emptied = _inside(draws.first, images.shape), _inside(draws.second, images.shape)
    held = jnp.where(inside, delta, 0)
    bump = _bump_images(bumps, level, draws.first, draws.transposed, images)
    bump = bump * draws.signs[:, None, None, :].astype(images.dtype)
    shape = jnp.where(inside, bump + held / (_TINY + sizes(held)), 0)
    total, both = _sizes(delta, (1, 2, 3), norm), sizes(jnp.where(inside | emptied, delta, 0))
    radius = per_example(eps, images)
    if norm == 'l2':
        size = jnp.sqrt(jnp.maximum(radius ** 2 - total ** 2, 0) / channels + both ** 2)
    else:
        size = jnp.maximum(radius - total, 0) + both * channels
    moved = jnp.where(inside, shape / (_TINY + sizes(shape)) * size, jnp.where(emptied, 0, delta))
    return _to_sphere(images, moved, eps, norm=norm)


def _sizes(delta: Array, axes: tuple[int, ...], norm: str) -> Array:
    if norm == 'l1':
        return jnp.sum(jnp.abs(delta), axis=axes, keepdims=True)
    return jnp.sqrt(jnp.sum(delta ** 2, axis=axes, keepdims=True))


def _to_sphere(images: Array, delta: Array, eps: Array, *, norm: str) -> Array:
    """l2: scaled to norm eps, then clipped to the box. l1: the nearest point of the ball and the box."""
    if norm == 'l1':
        return balls.to_box(images + project_to_ball_and_box(images, delta, eps * (1 - 1e-6)))
    return balls.to_box(images + delta / (_TINY + _sizes(delta, (1, 2, 3), norm)) * per_example(eps, images))
