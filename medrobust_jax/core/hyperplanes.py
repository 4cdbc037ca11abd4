r"""The shortest way from a point of the pixel box to a hyperplane, without leaving the box.

    minimize ||d||    subject to    w . (v + d) = b,    0 <= v + d <= 1

Contents: `to_hyperplane`, `DUAL` (the norm in which distances to hyperplanes are measured).
Every function works per example, on points `[B, ...]`, in units of [0, 1] pixels.

Every pixel moves against the sign of its weight, by `m_i` in [0, u_i], u_i its room in the box, and
gains `|w_i| m_i` of the distance needed:

    linf    m_i = min(t, u_i)               l2    m_i = min(t |w_i|, u_i)
    l1      the pixels of largest weight move first, each as far as it can

Example:

    d = to_hyperplane(points, normals, values, norm='l2')      # values = w . v - b, [B]
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.balls import NORMS
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array

DUAL = {'linf': 'l1', 'l2': 'l2', 'l1': 'linf'}


def to_hyperplane(points: Array, normals: Array, values: Array, *, norm: str) -> Array:
    """The smallest move of each point to its hyperplane that stays in the box.

    Where no point of the box lies on the hyperplane, the move goes to the point of the box that is
    nearest to it in value: every pixel as far as it can. A hyperplane without a normal is not
    approached.

    Args:
      points: `[B, ...]` in [0, 1].
      normals: `[B, ...]`, w; its scale does not matter together with that of `values`.
      values: `[B]`, `w . v - b` at the points v.
      norm: 'linf', 'l2' or 'l1': what is smallest.

    Returns:
      `[B, ...]`, the moves d. For 'linf', pixels of weight 0 do not move.

    Raises:
      ValueError: for an unknown norm.

    References:
      Croce and Hein, Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack,
      ICML 2020, section 2.2 and appendix A.
    Differs from the paper in: the level t is found by Newton's method instead of sorting, which for these
    concave, piecewise linear functions ends at the exact level after a few steps.
    """
    if norm not in NORMS:
        did_you_mean(norm, NORMS, 'norm')
    rows = normals.reshape(len(normals), -1)
    largest = jnp.max(jnp.abs(rows), axis=1)
    scale = jnp.where(largest > 0, largest, 1)  # so that squares of tiny gradients do not underflow
    weights = jnp.abs(rows) / scale[:, None]
    way = -jnp.sign(rows) * jnp.sign(values)[:, None]
    flat = points.reshape(rows.shape)
    room = jnp.where(way > 0, 1 - flat, jnp.where(way < 0, flat, 0))
    need = jnp.abs(values) / scale
    if norm == 'l1':
        lengths = jax.vmap(_largest_first)(weights, room, need)
    else:
        lengths = _to_one_level(weights, room, need, jnp.ones_like(weights) if norm == 'linf' else weights)
    out_of_reach = need >= jnp.sum(weights * room, axis=1)
    lengths = jnp.where(per_example(out_of_reach, lengths), room, lengths)
    return (way * lengths).reshape(points.shape)


def _to_one_level(weights: Array, room: Array, need: Array, speed: Array) -> Array:
    """Moves `min(t speed, room)`, with the level t `[B]` at which they gain `need`.

    Newton's method from t = 0 climbs to t from below and stays there once it has arrived, so the
    steps that other rows still need change nothing.
    """
    def climb(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        level, _ = carry
        free = room > level[:, None] * speed
        slope = jnp.sum(jnp.where(free, weights * speed, 0), axis=1)
        rest = need - jnp.sum(jnp.where(free, 0, weights * room), axis=1)
        proposed = jnp.where(slope > 0, rest / jnp.where(slope > 0, slope, 1), level)
        return jnp.maximum(proposed, level), level

    start = jnp.zeros_like(need)
    level, _ = jax.lax.while_loop(lambda c: jnp.any(c[0] > c[1]), climb, (start, start - 1))
    return jnp.minimum(level[:, None] * speed, room)


def _largest_first(weights: Array, room: Array, need: Array) -> Array:
    """Moves of one example's pixels `[n]` by falling weight, until they gain `need`."""
    order = jnp.argsort(-weights)
    gains, ordered = (weights * room)[order], weights[order]
    before = jnp.concatenate([jnp.zeros_like(gains[:1]), jnp.cumsum(gains)[:-1]])
    left = need - before
    part = jnp.maximum(left, 0) / jnp.where(ordered > 0, ordered, 1)
    lengths = jnp.where(left >= gains, room[order], jnp.minimum(part, room[order]))
    return jnp.zeros_like(lengths).at[order].set(lengths)
