"""How loops run: the one place that decides.

`repeat` compiles to one loop whose body is traced once. That is right on accelerators, and on CPU
for this project's own models, whose convolutions stay fast inside loops
(`medrobust_jax.models.convolution`). For a foreign model with stock convolutions, whose gradients
run tens of times slower inside a compiled loop on CPU, pass `unroll=True`, or run the attack's steps
from Python with `attacks.run.run_on_host`.

Example:

    state = repeat(step, state, 20)
"""
from collections.abc import Callable
from typing import TypeVar

import jax

from medrobust_jax.core.types import Array

State = TypeVar('State')


def repeat(body: Callable[[State], State], state: State, num_steps: int, *,
           finished: Callable[[State], Array] | None = None, unroll: bool = False) -> State:
    """Applies `body` `num_steps` times.

    Args:
      body: one step; keeps shapes and dtypes.
      state: where to start.
      num_steps: at most this many steps; a Python number.
      finished: `state -> scalar bool`; the loop ends as soon as it holds. Not with `unroll`.
      unroll: trace the body `num_steps` times instead of once.

    Returns:
      The state after the last step.
    """
    if unroll:
        for _ in range(num_steps):
            state = body(state)
        return state
    if finished is None:
        return jax.lax.fori_loop(0, num_steps, lambda _, s: body(s), state)
    _, state = jax.lax.while_loop(lambda c: (c[0] < num_steps) & ~finished(c[1]),
                                  lambda c: (c[0] + 1, body(c[1])), (0, state))
    return state
