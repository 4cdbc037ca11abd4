"""How many passes through the network an attack makes, counted, not assumed.

Contents: `Passes`, `passes_of`.

Example:

    passes = passes_of(attack, victim, image_shape=(28, 28, 1), targets=labels[:1])
    forward = attack.num_steps * passes.forward + passes.last_look
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.attacks.run import last_look
from medrobust_jax.core import rng
from medrobust_jax.core.types import Array, Attack, Outputs, Targets, Victim


class Passes(NamedTuple):
    """Passes per example.

    Attributes:
      forward: of one step (a look and a move).
      backward: of one step.
      last_look: forward passes of the look after the last move, which has no gradient.
    """

    forward: int
    backward: int
    last_look: int


def passes_of(attack: Attack, victim: Victim, *, image_shape: tuple[int, ...], targets: Targets,
              clean_outputs: Outputs | None = None) -> Passes:
    """What one step of `attack` and its last look cost.

    Traces them, without computing, through a forward function that counts the images it is given
    and the gradients that are pulled back through it.

    Args:
      attack: the attack.
      victim: the model.
      image_shape: `(*spatial, C)`.
      targets: of one example, leading axis 1.
      clean_outputs: likewise, for attacks that want them.
    """
    counts = {'forward': 0, 'backward': 0}

    def forward(images: Array, keys: Array) -> Any:
        counts['forward'] += images.shape[0]
        return victim.forward(images, keys)

    def forward_rule(images: Array, keys: Array) -> Any:
        return forward(images, keys), (images, keys)

    @jax.custom_batching.custom_vmap
    def pull_back(images: Array, cotangent: Any) -> Array:
        counts['backward'] += images.shape[0]
        return jnp.zeros_like(images)

    @pull_back.def_vmap
    def pull_back_several(axis_size: int, batched: Any, images: Array, cotangent: Any) -> tuple[Array, bool]:
        counts['backward'] += (axis_size - 1) * images.shape[1 if batched[0] else 0]  # the first is counted above
        return jnp.zeros((axis_size, *images.shape[1 if batched[0] else 0:]), images.dtype), True

    def backward_rule(residuals: Any, cotangent: Any) -> Any:
        return pull_back(residuals[0], cotangent), np.zeros(residuals[1].shape, jax.dtypes.float0)

    counted = jax.custom_vjp(forward)
    counted.defvjp(forward_rule, backward_rule)

    def look(images: Array, targets: Targets) -> Array:
        watched = victim._replace(forward=counted)
        keys = rng.example_keys(0, jnp.arange(1))
        one = jnp.ones(1, jnp.int32)
        knobs = {'eps': jnp.full(1, 0.1), 'restart': 0 * one, 'target_rank': one}
        state = attack.init(attack.adapt(watched), keys, images, targets, clean_outputs, knobs)
        counts.update(forward=0, backward=0)
        last = last_look(attack, watched, targets, state).images
        counts['last_look'] = counts.pop('forward')
        counts['forward'] = 0
        return jnp.asarray(last) + attack.step(attack.adapt(watched), images, targets, state).images

    jax.eval_shape(look, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), targets)
    return Passes(**counts)
