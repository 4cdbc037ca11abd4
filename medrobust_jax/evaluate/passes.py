"""How many passes through the network an attack makes, counted, not assumed.

Contents: `passes_per_look`, `looks_computed`.

Example:

    forward, backward = passes_per_look(attack, victim, image_shape=(28, 28, 1), targets=labels[:1])
"""
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core import rng
from medrobust_jax.core.types import Array, Attack, Targets, Victim


def passes_per_look(attack: Attack, victim: Victim, *, image_shape: tuple[int, ...],
                    targets: Targets) -> tuple[float, float]:
    """Forward and backward passes per example that one step of `attack` makes.

    Traces a step, without computing it, through a forward function that counts the images it is
    given and the gradients that are pulled back through it.

    Args:
      attack: the attack.
      victim: the model.
      image_shape: `(*spatial, C)`.
      targets: of one example, leading axis 1.

    Returns:
      `(forward, backward)`.
    """
    counts = {'forward': 0, 'backward': 0}

    @jax.custom_vjp
    def counted(images: Array, keys: Array) -> Any:
        counts['forward'] += images.shape[0]
        return victim.forward(images, keys)

    def forward_rule(images: Array, keys: Array) -> Any:
        return counted.fun(images, keys), (images, keys)

    def backward_rule(residuals: Any, cotangent: Any) -> Any:
        counts['backward'] += residuals[0].shape[0]
        return jnp.zeros_like(residuals[0]), np.zeros(residuals[1].shape, jax.dtypes.float0)

    counted.defvjp(forward_rule, backward_rule)

    def one_step(images: Array, targets: Targets) -> Array:
        watched = attack.adapt(victim._replace(forward=counted))
        keys = rng.example_keys(0, jnp.arange(1))
        state = attack.init(watched, keys, images, targets, None, {'eps': jnp.full(1, 0.1)})
        counts.update(forward=0, backward=0)
        return attack.step(watched, images, targets, state).images

    jax.eval_shape(one_step, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), targets)
    return counts['forward'], counts['backward']


def looks_computed(first_fooled: np.ndarray, *, num_steps: int, width: int, stops: bool) -> int:
    """Example-looks that lock-step blocks computed for these rows, padding left out.

    A block goes on until its last example is done, so each row costs what the slowest row of its
    block needs.

    Args:
      first_fooled: `[N]`, in the order the rows were run.
      num_steps: moves of the attack.
      width: rows per block.
      stops: whether an example leaves once fooled.
    """
    needed = np.where(stops & (first_fooled >= 0), first_fooled + 1, num_steps + 1)
    return sum(int(needed[i:i + width].max()) * len(needed[i:i + width]) for i in range(0, len(needed), width))
