"""Running an attack over a batch, in lock-step.

Contents: `begin`, `advance` (all moves, the state), `run` (with the last look: what was found), `perturb`
(the last iterate, for training), `run_on_host` (a Python loop around one compiled step).
All but the last are pure and work under jit, vmap, pmap and shard_map.

Example:

    victim = Victim(forward, loss, acceptable)
    result = jax.jit(partial(run, pgd(num_steps=20), victim, eps=8 / 255))(keys, images, labels)
"""
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp

from medrobust_jax.attacks import looks
from medrobust_jax.core.loops import repeat
from medrobust_jax.core.types import Array, Attack, AttackResult, AttackState, Knobs, Outputs, Targets, Victim


def begin(attack: Attack, victim: Victim, keys: Array, images: Array, targets: Targets, *,
          eps: float | Array, knobs: Knobs | None = None, clean_outputs: Outputs | None = None) -> AttackState:
    """The state before the first look; `victim` has been through `attack.adapt`. Arguments as `advance`."""
    batch = images.shape[0]
    if keys.shape[0] != batch:
        raise ValueError(f'{keys.shape[0]} keys for {batch} images: one key per example, see rng.example_keys')
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f'images have dtype {images.dtype}; divide by their maximum, so that they are in [0, 1]')
    radius = jnp.broadcast_to(jnp.asarray(eps, images.dtype), (batch,))
    return attack.init(victim, keys, images, targets, clean_outputs, {**(knobs or {}), 'eps': radius})


def advance(attack: Attack, victim: Victim, keys: Array, images: Array, targets: Targets, *,
            eps: float | Array, knobs: Knobs | None = None, clean_outputs: Outputs | None = None,
            unroll: bool = False) -> AttackState:
    """Makes all `attack.num_steps` moves; ends early once every example is done.

    Args:
      attack: the attack.
      victim: the model.
      keys: `[B]` typed keys, see `rng.example_keys`.
      images: `[B, *spatial, C]` in [0, 1].
      targets: what the victim's loss and criterion take.
      eps: the ball's radius in units of [0, 1] pixels, a scalar or `[B]`; data, not compiled in.
      knobs: further per-example settings `[B]`.
      clean_outputs: the model's outputs at `images`, for attacks that want them.
      unroll: see `loops.repeat`.

    Returns:
      The state after the last move, whose current iterates have not been looked at.
    """
    victim = attack.adapt(victim)
    state = begin(attack, victim, keys, images, targets, eps=eps, knobs=knobs, clean_outputs=clean_outputs)
    return repeat(lambda s: attack.step(victim, images, targets, s), state, attack.num_steps,
                  finished=lambda s: jnp.all(s.done), unroll=unroll)


def last_look(attack: Attack, victim: Victim, targets: Targets, state: AttackState) -> AttackResult:
    """Looks at the current iterates without moving, and returns what the attack found."""
    victim = attack.adapt(victim)
    outputs = victim.forward(state.images, looks.pass_keys(state))
    state = looks.record(state, victim.loss(outputs, targets), victim.acceptable(outputs, targets))
    return AttackResult(state.best_images, state.best_loss, state.acceptable, state.first_fooled)


def run(attack: Attack, victim: Victim, keys: Array, images: Array, targets: Targets, *, eps: float | Array,
        knobs: Knobs | None = None, clean_outputs: Outputs | None = None, unroll: bool = False) -> AttackResult:
    """Attacks a batch: `advance`, then one last look. Arguments as `advance`.

    Returns:
      The strongest image found per example with its loss, and whether the model withstood all
      images looked at. An attack that starts at the clean image looks at that first, so an example
      that is wrong without an attack counts as fooled.
    """
    state = advance(attack, victim, keys, images, targets, eps=eps, knobs=knobs, clean_outputs=clean_outputs,
                    unroll=unroll)
    return last_look(attack, victim, targets, state)


def perturb(attack: Attack, victim: Victim, keys: Array, images: Array, targets: Targets, *,
            eps: float | Array, knobs: Knobs | None = None) -> Array:
    """The last iterate `[B, *spatial, C]`, which adversarial training trains on; a constant to gradients."""
    state = advance(attack, victim, keys, jax.lax.stop_gradient(images), targets, eps=eps, knobs=knobs)
    return jax.lax.stop_gradient(state.images)


def run_on_host(attack: Attack, victim: Victim, keys: Array, images: Array, targets: Targets, *,
                eps: float | Array, knobs: Knobs | None = None,
                clean_outputs: Outputs | None = None) -> AttackResult:
    """As `run`, but as a Python loop around one compiled step; cannot itself be transformed.

    For models whose gradients are slow inside compiled loops, such as stock convolutions on CPU.
    Pass the same attack and victim again, not equal ones made anew, to compile once.
    """
    state = begin(attack, attack.adapt(victim), keys, images, targets, eps=eps, knobs=knobs,
                  clean_outputs=clean_outputs)
    step, look = _compiled(attack, victim)
    for _ in range(attack.num_steps):
        if bool(jnp.all(state.done)):
            break
        state = step(images, targets, state)
    return look(targets, state)


@lru_cache(maxsize=4)  # of attacks and victims, so that a second batch costs no compilation
def _compiled(attack: Attack, victim: Victim) -> tuple[Callable[..., AttackState], Callable[..., AttackResult]]:
    return jax.jit(partial(attack.step, attack.adapt(victim))), jax.jit(partial(last_look, attack, victim))
