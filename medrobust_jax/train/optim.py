"""Optimizers and learning-rate schedules, by name.

Contents: `create_schedule`, `create_optimizer`, and the names they know, `SCHEDULES` and
`OPTIMIZERS`.

Example, the survey's recipe:

    schedule = create_schedule('one_cycle', peak=0.01, steps=steps)
    optimizer = create_optimizer('sgd', schedule, momentum=0.9, weight_decay=1e-3)
    opt_state = optimizer.init(params)
"""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import PyTree

OPTIMIZERS = ('sgd', 'sgdw', 'adam', 'adamw')
SCHEDULES = ('constant', 'cosine', 'one_cycle', 'piecewise')


def create_schedule(name: str, *, peak: float, steps: int, warmup_steps: int = 0, final: float = 0.0,
                    pct_start: float = 0.25, div_factor: float = 25.0, final_div_factor: float = 1e4,
                    boundaries: Sequence[int] = (), factor: float = 0.1) -> optax.Schedule:
    """The learning rate as a function of the number of updates made, t.

        constant   peak
        cosine     final + (peak - final) (1 + cos(pi u)) / 2,   u = (t - warmup) / (steps - warmup)
        one_cycle  cosine from peak / div_factor up to peak at t = pct_start * steps, then cosine
                   down to peak / (div_factor * final_div_factor)
        piecewise  peak * factor^(number of boundaries <= t)

    All but 'one_cycle' are preceded by a linear warm-up: times t / warmup_steps for t < warmup_steps.

    Args:
      name: one of `SCHEDULES`.
      peak: the highest learning rate.
      steps: the length of the run in updates.
      warmup_steps: the length of the warm-up; 0 for none.
      final: where 'cosine' ends.
      pct_start: 'one_cycle' peaks here, as a fraction of `steps`; the survey uses 0.25.
      div_factor: 'one_cycle' starts at `peak / div_factor`; 25 is PyTorch's default.
      final_div_factor: see above; 1e4 is PyTorch's default.
      boundaries: 'piecewise' changes at these updates, in increasing order.
      factor: by this.

    Returns:
      `t -> learning rate`.

    Raises:
      ValueError: for an unknown name, or numbers out of range.

    Differs from PyTorch's OneCycleLR in: momentum stays fixed.
    """
    if name not in SCHEDULES:
        did_you_mean(name, SCHEDULES, 'schedule')
    if not (peak >= 0 and steps > 0 and 0 <= warmup_steps < steps and 0 < pct_start < 1):
        raise ValueError(f'schedule {name!r}: needs peak >= 0, 0 <= warmup_steps < steps and 0 < pct_start '
                         f'< 1, got peak={peak}, warmup_steps={warmup_steps}, steps={steps}, {pct_start=}')
    if name == 'one_cycle':
        if warmup_steps:
            raise ValueError("schedule 'one_cycle' rises on its own; set warmup_steps to 0")
        return _one_cycle(peak, steps, pct_start * steps, div_factor, final_div_factor)
    if name == 'piecewise' and (not boundaries or list(boundaries) != sorted(set(boundaries))):
        raise ValueError(f"schedule 'piecewise' needs increasing boundaries, got {tuple(boundaries)}")
    after = {'constant': lambda t: peak,
             'cosine': lambda t: _cosine(peak, final, (t - warmup_steps) / (steps - warmup_steps)),
             'piecewise': lambda t: peak * factor ** sum((t >= b) * 1.0 for b in boundaries)}[name]
    return lambda t: after(t) * jnp.minimum(t / warmup_steps if warmup_steps else 1.0, 1.0)


def _cosine(start: float, end: float, fraction: jax.typing.ArrayLike) -> jax.Array:
    """Half a cosine from `start` at fraction 0 to `end` at 1, flat outside."""
    return end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.clip(fraction, 0.0, 1.0))) / 2


def _one_cycle(peak: float, steps: int, top: float, div_factor: float,
               final_div_factor: float) -> optax.Schedule:
    low, last = peak / div_factor, peak / (div_factor * final_div_factor)
    return lambda t: jnp.where(jnp.asarray(t) < top, _cosine(low, peak, t / top),
                               _cosine(peak, last, (t - top) / (steps - top)))


def create_optimizer(name: str, learning_rate: float | optax.Schedule, *, momentum: float = 0.9,
                     nesterov: bool = False, b1: float = 0.9, b2: float = 0.999, adam_eps: float = 1e-8,
                     weight_decay: float = 0.0, decay_norm_and_bias: bool = True,
                     clip_norm: float | None = None) -> optax.GradientTransformation:
    """An optimizer: clip, decay, precondition, scale.

    With gradient g (clipped first: g * min(1, clip_norm / ||g||)), weights w, rate r, decay c:

        sgd    m <- momentum m + (g + c w);   w <- w - r m             as PyTorch's SGD
        sgdw   m <- momentum m + g;           w <- w - r (m + c w)
        adam   Adam on g + c w                                         as PyTorch's Adam
        adamw  w <- w - r (Adam(g) + c w)                              as PyTorch's AdamW

    Nesterov uses `g + momentum m` in place of `m`. In the L2 forms ('sgd', 'adam') the penalty
    passes through momentum and preconditioner; in the decoupled ones it does not.

    Args:
      name: one of `OPTIMIZERS`.
      learning_rate: a number, or a schedule from `create_schedule`.
      momentum: of sgd and sgdw, in [0, 1).
      nesterov: of sgd and sgdw.
      b1: of adam and adamw.
      b2: of adam and adamw.
      adam_eps: of adam and adamw, added outside the root.
      weight_decay: c, not negative.
      decay_norm_and_bias: whether decay also acts on leaves with fewer than two axes (scales and
        shifts of normalization, biases).
      clip_norm: the largest global norm of the gradient; None for no clipping.

    Returns:
      An optax transformation whose `update` needs the parameters.

    Raises:
      ValueError: for an unknown name, or numbers out of range.
    """
    if name not in OPTIMIZERS:
        did_you_mean(name, OPTIMIZERS, 'optimizer')
    if weight_decay < 0 or not 0 <= momentum < 1 or (clip_norm is not None and clip_norm <= 0):
        raise ValueError(f'optimizer {name!r}: needs weight_decay >= 0, 0 <= momentum < 1 and clip_norm > 0 '
                         f'or None, got {weight_decay=}, {momentum=}, {clip_norm=}')
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    decay = optax.identity() if not weight_decay else optax.add_decayed_weights(
        weight_decay, mask=None if decay_norm_and_bias else _has_two_axes)
    if name.startswith('sgd'):
        move = optax.trace(momentum, nesterov) if momentum else optax.identity()
    else:
        move = optax.scale_by_adam(b1, b2, adam_eps)
    order: list[optax.GradientTransformation] = [move, decay] if name.endswith('w') else [decay, move]
    return optax.chain(clip, *order, optax.scale_by_learning_rate(learning_rate))


def _has_two_axes(params: PyTree) -> PyTree:
    """True where a leaf is a weight, False on norm scales and shifts and on biases."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
