"""Attacks that try images one after the other and keep the worst, without a gradient.

Contents: `worst_of`.

Example:

    attack = worst_of(lambda keys, images, eps, number: balls.to_box(images + noise(keys, eps)), num_draws=100)
"""
from collections.abc import Callable

import jax.numpy as jnp

from medrobust_jax.attacks import looks
from medrobust_jax.core import rng
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

# (keys [B], images [B, *spatial, C], eps [B], number [B]) -> images
Draw = Callable[[Array, Array, Array, Array], Array]

_DRAWS = 0xD4A3  # keeps the keys of draws apart from those of passes and restarts


def worst_of(draw: Draw, *, num_draws: int) -> Attack:
    """Looks at `draw` number 0, 1, ..., `num_draws - 1`, each with keys of its own.

    Draw i depends on the example's key and i alone, so more draws are never weaker.

    Args:
      draw: makes the images to look at; `number` counts from 0 and may exceed `num_draws - 1` in a
        call whose result is thrown away.
      num_draws: n >= 1; each costs one forward pass, and there are no backward passes.

    Returns:
      The attack. Its last iterate, which training would use, is the last draw and not the worst.

    Raises:
      ValueError: for num_draws < 1.
    """
    if num_draws < 1:
        raise ValueError(f'num_draws = {num_draws} must be at least 1')

    def drawn(keys: Array, images: Array, eps: Array, number: Array) -> Array:
        return draw(rng.fold(rng.fold(keys, _DRAWS), number), images, eps, number)

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        first = drawn(keys, images, knobs['eps'], jnp.zeros(images.shape[0], jnp.int32))
        return looks.start_state(keys, first, knobs)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs = victim.forward(state.images, looks.pass_keys(state))
        state = looks.record(state, victim.loss(outputs, targets), victim.acceptable(outputs, targets))
        return looks.move_to(state, drawn(state.key, images, state.knobs['eps'], state.step), state.inner)

    return Attack(init, step, num_draws - 1)  # the runner's last look is at the last draw
