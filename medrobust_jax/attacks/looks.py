"""What every iterative attack does at each step: evaluate the current image, and record it.

Contents: `start_state`, `pass_keys`, `loss_and_gradient`, `record`, `move_to`.

Example, the body of a step:

    outputs, loss, gradient = loss_and_gradient(victim, state, targets)
    state = record(state, loss, victim.acceptable(outputs, targets))
    return move_to(state, new_images, inner)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.core import rng
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, AttackState, Knobs, Outputs, PyTree, Targets, Victim

_PASSES = 0x9A55E5  # keeps the keys of passes apart from those of restarts, which fold in 1, 2, ...


def start_state(keys: Array, images: Array, knobs: Knobs, inner: PyTree = ()) -> AttackState:
    """The state of an attack that has not looked yet, at `images` `[B, *spatial, C]`."""
    batch = images.shape[0]
    return AttackState(images=images, best_images=images, best_loss=jnp.full(batch, -jnp.inf, images.dtype),
                       acceptable=jnp.ones(batch, bool), first_fooled=jnp.full(batch, -1, jnp.int32),
                       looks_acceptable=jnp.zeros(batch, jnp.int32), done=jnp.zeros(batch, bool),
                       step=jnp.zeros(batch, jnp.int32), key=keys, knobs=knobs, inner=inner)


def pass_keys(state: AttackState) -> Array:
    """The keys `[B]` that the model's own randomness uses at this look: fresh at every step."""
    return rng.fold(rng.fold(state.key, _PASSES), state.step)


def loss_and_gradient(victim: Victim, state: AttackState, targets: Targets,
                      objective: Callable[[Outputs, Array], Array] | None = None
                      ) -> tuple[Outputs, Array, Array]:
    """One forward and one backward pass at the current iterates.

    Args:
      victim: the model.
      state: where to look.
      targets: the truth.
      objective: `(outputs, loss [B]) -> [B]`, what to differentiate; default the loss.

    Returns:
      outputs; the victim's loss `[B]`; the gradient `[B, *spatial, C]` of the objective, zero where
      it is not finite: a NaN pixel would pass for a fooling image.
    """
    keys = pass_keys(state)

    def total(images: Array) -> tuple[Array, tuple[Outputs, Array]]:
        outputs = victim.forward(images, keys)
        loss = victim.loss(outputs, targets)
        return jnp.sum(loss if objective is None else objective(outputs, loss)), (outputs, loss)

    gradient, (outputs, loss) = jax.grad(total, has_aux=True)(state.images)
    return outputs, loss, jnp.where(jnp.isfinite(gradient), gradient, 0)


def record(state: AttackState, loss: Array, acceptable: Array) -> AttackState:
    """Enters a look at `state.images` into the records, and counts it.

    A fooled image beats an unfooled one, then the higher loss wins. Nothing changes for examples
    that are done. A NaN loss counts as the lowest.

    Args:
      state: before the look.
      loss: `[B]`, the victim's loss at `state.images`.
      acceptable: `[B]` bool, the criterion there.
    """
    active = ~state.done
    loss = jnp.where(jnp.isnan(loss), -jnp.inf, loss).astype(state.best_loss.dtype)
    fooled = ~acceptable
    improves = jnp.where(fooled == ~state.acceptable, loss > state.best_loss, fooled) & active
    return state.replace(
        best_images=jnp.where(per_example(improves, state.images), state.images, state.best_images),
        best_loss=jnp.where(improves, loss, state.best_loss),
        acceptable=state.acceptable & (acceptable | state.done),
        first_fooled=jnp.where(active & fooled & (state.first_fooled < 0), state.step, state.first_fooled),
        looks_acceptable=state.looks_acceptable + (active & acceptable),
        step=state.step + active)


def move_to(state: AttackState, images: Array, inner: PyTree) -> AttackState:
    """Moves to `images` with the attack's own arrays `inner`, except where an example is done."""
    def keep(new: Array, old: Array) -> Array:
        return jnp.where(per_example(state.done, new), old, new)
    return state.replace(images=keep(images, state.images), inner=jax.tree.map(keep, inner, state.inner))
