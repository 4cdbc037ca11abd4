r"""How APGD climbs in Linf and L2: with momentum, and steps that are halved when progress stalls.

    z_{t+1} = P(x_t + s_t d(g_t))
    x_{t+1} = P(x_t + a (z_{t+1} - x_t) + (1 - a)(x_t - x_{t-1})),      a = .75 (1 at t = 0)

P projects to the ball, then to the box; d is the sign (Linf) or the normalized gradient (L2);
s_0 = 2 eps. At the checkpoints s is halved, and x_t and g_t are those of the best point so far, if

    1. the loss rose in at most rho * w of the window's w moves, or
    2. s was not halved at the last checkpoint, and the best loss has not grown since.

Contents: `Ascent` (what a norm contributes to APGD), `checkpoints`, `momentum_ascent`, `into`, `pick`.

Example:

    ascent = momentum_ascent(num_steps=100, norm='linf', rho=.75)
    images, inner = ascent.move(clean, state, loss, gradient)
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from medrobust_jax.core import balls, rng
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, AttackState, PyTree


class Ascent(NamedTuple):
    """What one norm contributes to APGD; everything per example.

    Attributes:
      num_moves: how many moves an attack makes.
      start: `(keys [B], images, eps [B]) -> images`, the random start.
      init: `images -> inner`, the arrays that `move` keeps.
      counts: `look [B] -> [B] bool`, whether a look may decide the verdict.
      move: `(clean images, state, loss [B], gradient) -> (images, inner)`; `loss` and `gradient`
        are of what is climbed, at `state.images`; `state.step` is the number of looks before.
    """

    num_moves: int
    start: Callable[[Array, Array, Array], Array]
    init: Callable[[Array], PyTree]
    counts: Callable[[Array], Array]
    move: Callable[[Array, AttackState, Array, Array], tuple[Array, PyTree]]


def pick(mask: Array, new: Array, old: Array) -> Array:
    """`new` where `mask` `[B]`, else `old`; both `[B, ...]`."""
    return jnp.where(per_example(mask, new), new, old)


def into(images: Array, point: Array, radius: Array, *, norm: str) -> Array:
    """`point` projected to the ball of `radius` `[B]` around `images`, then clipped to the box."""
    return balls.to_box(images + balls.project(point - images, radius, norm=norm))


def checkpoints(num_steps: int) -> list[tuple[int, int]]:
    """The checkpoints as (moves made, moves since the last checkpoint).

    The first window is 22 % of `num_steps`; every further one is shorter by 3 %, down to 6 %; each
    is rounded down and at least one move.
    """
    window, shrink, shortest = (max(int(share * num_steps), 1) for share in (.22, .03, .06))
    found, at = [], window
    while at <= num_steps:
        found.append((at, window))
        window = max(window - shrink, shortest)
        at += window
    return found


def loss_dtype(images: Array) -> jnp.dtype:
    """Losses are compared in float32 at least."""
    return jnp.promote_types(images.dtype, jnp.float32)


def momentum_ascent(*, num_steps: int, norm: str, rho: float) -> Ascent:
    """APGD's ascent for 'linf' and 'l2', as the module's docstring states it.

    Provenance of the constants and of three details: the authors' code. (1) The rises of a window
    compare the losses after consecutive moves; the first move's loss is compared with 0, not with
    the start's. (2) The first checkpoint counts as if the step had been halved before, so that the
    second condition cannot hold there. (3) A return to the best point leaves x_{t-1} as it was.

    Args:
      num_steps: moves, >= 1.
      norm: 'linf' or 'l2'.
      rho: the share of rises, in [0, 1], up to which the step is halved.
    """
    looks_of_checks, windows = np.array(checkpoints(num_steps), np.int32).reshape(-1, 2).T
    most_rises = np.array([math.floor(rho * window) for window in windows.tolist()], np.int32)

    def start(keys: Array, images: Array, eps: Array) -> Array:
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        shape = images.shape[1:]
        noise = rng.uniform(keys, shape, -1., 1., dtype) if norm == 'linf' else rng.normal(keys, shape, dtype)
        noise = noise / per_example(balls.norm_of(noise, norm=norm), noise)
        return balls.to_box(images + (noise * per_example(eps, noise)).astype(images.dtype))

    def init(images: Array) -> PyTree:
        zero = jnp.zeros(images.shape[0], loss_dtype(images))
        return {'best': images, 'best_gradient': jnp.zeros_like(images), 'best_loss': zero - jnp.inf,
                'previous': images, 'last_loss': zero, 'best_at_check': zero, 'step_ratio': zero + 2,
                'rises': jnp.zeros(images.shape[0], jnp.int32), 'halved': jnp.ones(images.shape[0], bool)}

    def move(images: Array, state: AttackState, loss: Array, gradient: Array) -> tuple[Array, PyTree]:
        inner, first, eps = state.inner, state.step == 0, state.knobs['eps']
        loss = loss.astype(inner['best_loss'].dtype)
        better = loss > inner['best_loss']
        best = pick(better, state.images, inner['best'])
        best_gradient = pick(better, gradient, inner['best_gradient'])
        best_loss = jnp.where(better, loss, inner['best_loss'])
        best_at_check = jnp.where(first, best_loss, inner['best_at_check'])
        rises = inner['rises'] + (~first & (loss > inner['last_loss']))

        here = state.step[:, None] == looks_of_checks
        check = here.any(axis=1)
        oscillates = rises <= jnp.sum(jnp.where(here, most_rises, 0), axis=1)
        halve = check & (oscillates | (~inner['halved'] & (best_at_check >= best_loss)))
        ratio = jnp.where(halve, inner['step_ratio'] / 2, inner['step_ratio'])

        point, gradient = pick(halve, best, state.images), pick(halve, best_gradient, gradient)
        length = per_example((ratio * eps).astype(images.dtype), images)
        straight = into(images, point + length * balls.ascent_direction(gradient, norm=norm), eps, norm=norm)
        previous = pick(first, point, inner['previous'])
        share = per_example(jnp.where(first, 1, .75).astype(images.dtype), images)
        moved = into(images, point + share * (straight - point) + (1 - share) * (point - previous), eps, norm=norm)
        return moved, {'best': best, 'best_gradient': best_gradient, 'best_loss': best_loss, 'previous': point,
                       'last_loss': jnp.where(first, 0, loss), 'step_ratio': ratio,
                       'best_at_check': jnp.where(check, best_loss, best_at_check),
                       'rises': jnp.where(check, 0, rises), 'halved': jnp.where(check, halve, inner['halved'])}

    return Ascent(num_steps, start, init, lambda look: jnp.ones(look.shape, bool), move)
