"""The compiled side of the pool: slots that hold attacks in flight.

A slot holds one example with its attack's state; every example has its own iteration, radius, step
size and key. The network is computed in blocks of fixed width (`core.blocks`), and a block whose
examples are all done is skipped, so an example's result does not depend on what shares its block.

Contents: `Entrants`, `Held`, `SlotPrograms`, `make_slots`.

Example:

    slots = make_slots(forward, task, pgd(num_steps=100), layout, stop=True)
    held = slots.empty(variables, entrants)
    held = slots.refill(variables, held, np.arange(64), np.ones(64, bool), entrants)
    held, looks = slots.advance(variables, held, np.full(64, 5, np.int32))
"""
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from medrobust_jax.attacks.wrappers import stop_when_fooled
from medrobust_jax.core.blocks import in_blocks, on_each_device
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, PyTree, Targets, Task, Victim
from medrobust_jax.evaluate.programs import Layout, ModelForward, victim_of


class Entrants(NamedTuple):
    """What enters the slots; every leaf has the leading axis S.

    Attributes:
      images: `[S, *spatial, C]` clean images.
      targets: the task's targets.
      keys: `[S]` typed keys.
      clean_outputs: the model's outputs at `images`.
      knobs: 'eps' and whatever else the attack reads, see `core.types.Knobs`.
    """

    images: Array | np.ndarray
    targets: Targets
    keys: Array
    clean_outputs: Outputs
    knobs: Mapping[str, Array | np.ndarray]


class Held(NamedTuple):
    """What the slots hold; every leaf has the leading axis S. `age` counts the steps taken, looks included."""

    images: Array
    targets: Targets
    state: AttackState
    age: Array


class SlotPrograms(NamedTuple):
    """The compiled programs, for any number of slots that is a multiple of `2 * width * devices`.

    Attributes:
      empty: `(variables, entrants) -> held`: slots of the right shapes, all done; compiles nothing.
      refill: `(variables, held, source [S] int32, fresh [S] bool, entrants) -> held`: slot s takes what
        slot `source[s]` of its own device held or, where `fresh`, starts on its entrant. Consumes `held`.
      advance: `(variables, held, num_looks [S] int32) -> (held, looks [S])`: every slot that is not
        done looks and moves up to so many times; `looks` is what its block computed. Consumes `held`.
    """

    empty: Callable[..., Held]
    refill: Callable[..., Held]
    advance: Callable[..., tuple[Held, Array]]


@lru_cache(maxsize=64)
def make_slots(forward: ModelForward, task: Task, attack: Attack, layout: Layout, *, stop: bool) -> SlotPrograms:
    """The programs for one attack; the same arguments give the same programs, so nothing compiles twice.

    An example is done after `num_steps + 1` looks, when its attack says so or, with `stop`, once it
    is fooled; its image then stays what it was. The move after the last look is discarded.
    """
    stepped = stop_when_fooled(attack) if stop else attack
    by_row = NamedSharding(layout.mesh, PartitionSpec('data'))

    def victim(variables: PyTree) -> Victim:
        return attack.adapt(victim_of(forward, variables, task))

    def start(variables: PyTree, new: Entrants) -> Held:
        def block(images: Array, targets: Targets, keys: Array, outputs: Outputs, knobs: Knobs) -> AttackState:
            return attack.init(victim(variables), keys, images, targets, outputs, knobs)
        state = in_blocks(block, width=layout.width)(*new)
        return Held(jnp.asarray(new.images), new.targets, state, jnp.zeros(new.keys.shape, jnp.int32))

    def empty(variables: PyTree, new: Entrants) -> Held:
        shapes = jax.eval_shape(start, variables, new)
        held = jax.tree.map(lambda leaf: jax.device_put(_zeros(leaf), by_row), shapes)
        done = jax.device_put(np.ones(held.state.done.shape, bool), by_row)
        return held._replace(state=held.state.replace(done=done))

    def refill(variables: PyTree, held: Held, source: Array, fresh: Array, new: Entrants) -> Held:
        def pick(started: Array, old: Array) -> Array:
            return jnp.where(per_example(fresh, started), started, old[source])
        return jax.tree.map(pick, start(variables, new), held)

    def advance(variables: PyTree, held: Held, num_looks: Array) -> tuple[Held, Array]:
        def block(held: Held, num_looks: Array) -> tuple[AttackState, Array, Array]:
            def look(carry: tuple[Array, Array, AttackState]) -> tuple[Array, Array, AttackState]:
                count, age, state = carry
                age = age + ~state.done
                state = stepped.step(victim(variables), held.images, held.targets, state)
                return count + 1, age, state.replace(done=state.done | (age > attack.num_steps))

            def goes_on(carry: tuple[Array, Array, AttackState]) -> Array:
                return (carry[0] < num_looks[0]) & jnp.any(~carry[2].done)

            count, age, state = jax.lax.while_loop(goes_on, look, (jnp.int32(0), held.age, held.state))
            return state, age, jnp.full(num_looks.shape, count)

        state, age, looks = in_blocks(block, width=layout.width)(held, num_looks)
        return held._replace(state=state, age=age), looks

    def compiled(rows: Callable[..., PyTree]) -> Callable[..., Any]:
        # Said outright: where there is one device, XLA would name the same layout differently and compile twice.
        return jax.jit(on_each_device(rows, layout.mesh, num_shared=1), donate_argnums=1, out_shardings=by_row)

    return SlotPrograms(empty, compiled(refill), compiled(advance))


def _zeros(like: jax.ShapeDtypeStruct) -> np.ndarray | Array:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):  # NumPy has no typed keys
        size = jax.random.key_data(jax.random.key(0)).shape
        return jax.random.wrap_key_data(jnp.zeros((*like.shape, *size), jnp.uint32))
    return np.zeros(like.shape, like.dtype)
