"""Projected gradient ascent whose step and start are data, for training: every example has its own.

    x_0     = x + start
    x_{t+1} = clip_{[0,1]}(x + P_eps(x_t + step_size * d_t - x)),     d_t the norm's steepest ascent

`pgd` fixes the step to a share of eps. Here 'step_size' is a knob like 'eps' (absolute, so that it can stay while
eps ramps, or follow a margin), and the start can lie at a given distance ('start_size').

Contents: `ascent`, `sphere_noise`, `with_boundary` (remembers both sides of where the criterion first fails),
`bisect`.

Example:

    attack = ascent(num_steps=20, norm='l2', start='sphere')
    knobs = {'step_size': 0.2 * margins, 'start_size': 0.9 * margins}
    state = advance(attack, victim, keys, images, targets, eps=margins, knobs=knobs)
"""
from collections.abc import Callable

import jax.numpy as jnp

from medrobust_jax.attacks import looks, pgd
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.loops import repeat
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

STARTS = ('sphere', *pgd.STARTS)


def sphere_noise(keys: Array, images: Array, size: Array, *, norm: str) -> Array:
    """U(-1, 1) noise `[B, *spatial, C]`, scaled to the norm `size` `[B]`."""
    noise = rng.uniform(keys, images.shape[1:], -1.0, 1.0).astype(images.dtype)
    return noise * per_example(size / balls.norm_of(noise, norm=norm), images)


def ascent(*, num_steps: int = 20, norm: str = 'l2', start: str = 'ball') -> Attack:
    """Projected gradient ascent with the knobs 'eps', 'step_size' and, for the start 'sphere', 'start_size'.

    Args:
      num_steps: K >= 1, gradient steps.
      norm: 'l2', 'linf' or 'l1'.
      start: 'sphere' (noise of norm 'start_size', projected on the ball and, as in the published adaptive-margin
        code, not clipped to the box) or one of `pgd`'s: 'ball', 'clean', 'gaussian'.

    Raises:
      ValueError: for num_steps < 1, an unknown norm or start.
    """
    if start not in STARTS:
        did_you_mean(start, STARTS, 'start')
    pgd.check_options(num_steps=num_steps, norm=norm, relative_step_size=None,
                      start='clean' if start == 'sphere' else start)

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        if start == 'sphere':
            noise = sphere_noise(keys, images, knobs['start_size'], norm=norm)
            first = images + balls.project(noise, knobs['eps'], norm=norm)
        else:
            first = balls.to_box(images + pgd.start_noise(keys, images, knobs['eps'], start=start, norm=norm))
        return looks.start_state(keys, first, knobs)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs, loss, gradient = looks.loss_and_gradient(victim, state, targets)
        state = looks.record(state, loss, victim.acceptable(outputs, targets))
        length = state.knobs['step_size']
        room = balls.room_of(state.images, length)
        moved = state.images + per_example(length, images) * balls.ascent_direction(gradient, norm=norm, room=room)
        moved = balls.to_box(images + balls.project(moved - images, state.knobs['eps'], norm=norm))
        return looks.move_to(state, moved, state.inner)

    return Attack(init, step, num_steps)


def with_boundary(attack: Attack) -> Attack:
    """Remembers, as `inner['ok']` and `inner['fooling']`, both sides of where the criterion first failed.

    'fooling' is the first iterate that fails, 'ok' the one before it: the clean image where the start already
    fails. Before anything fails both are the clean image and the last that was looked at.
    """
    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        state = attack.init(victim, keys, images, targets, clean_outputs, knobs)
        return state.replace(inner={'attack': state.inner, 'ok': images, 'fooling': images})

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        after = attack.step(victim, images, targets, state.replace(inner=state.inner['attack']))
        sides = boundary_sides(state, after.acceptable)
        return after.replace(inner={'attack': after.inner, **sides})

    return attack._replace(init=init, step=step)


def boundary_sides(state: AttackState, acceptable: Array) -> dict[str, Array]:
    """'ok' and 'fooling' after a look at `state.images`; `acceptable` [B]: all looks so far, with this one."""
    here = per_example(state.acceptable & acceptable, state.images)
    first = per_example(state.acceptable & ~acceptable, state.images)
    return {'ok': jnp.where(here, state.images, state.inner['ok']),
            'fooling': jnp.where(first, state.images, state.inner['fooling'])}


def bisect(acceptable: Callable[[Array], Array], ok: Array, fooling: Array, *, num_steps: int = 10) -> Array:
    """The middle between both sides after `num_steps` halvings, `[B, *spatial, C]`.

    Args:
      acceptable: `images -> [B]` bool; one pass per halving.
      ok: the side that meets the criterion, or is taken for it.
      fooling: the other side.
      num_steps: >= 0.
    """
    def halve(sides: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = sides
        middle = (low + high) / 2
        meets = per_example(acceptable(middle), middle)
        return jnp.where(meets, middle, low), jnp.where(meets, high, middle)

    low, high = repeat(halve, (ok, fooling), num_steps)
    return (low + high) / 2
