"""Training against several attacks at once, each climbing a loss of its own: the shape paper's 'r', 's' and 'rs'.

Contents: `two_attacks`.

Example:

    losses = (point_loss, mask_loss)             # of losses.shape: 'rs'; one of them: 'r', 's'
    ramp = warmed_up(constant(0.07), steps=total_steps)
    defense = two_attacks(task, losses, radius=ramp, num_steps=20, step_size=0.01)
"""
from collections.abc import Callable

import jax.numpy as jnp

from medrobust_jax.attacks.ascent import ascent
from medrobust_jax.attacks.run import perturb
from medrobust_jax.attacks.wrappers import with_loss
from medrobust_jax.core import rng
from medrobust_jax.core.types import Array, Batch, Defense, Forward, Outputs, PyTree, Targets, Task
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.defenses.standard import stateless, victim_of

_ATTACKS = 0x2A77  # keeps the draws of the attacks apart


def two_attacks(task: Task, attack_losses: tuple[Callable[[Outputs, Targets], Array], ...], *, radius: Radius,
                num_steps: int = 20, step_size: float = 0.01, norm: str = 'linf', start: str = 'ball',
                attack_batch_norm: str = 'batch_stats') -> Defense:
    """`min E [(loss(f(x), y) + mean_k loss(f(x_k), y)) / 2]`, x_k the end of PGD on attack loss k.

    With two attack losses every term t of the task's loss counts `(t(x) + t(x_1) / 2 + t(x_2) / 2) / 2`, as
    published; with one, `(t(x) + t(x_1)) / 2` [ours]. Any number is taken. eps may ramp (`radius.warmed_up` over
    the whole training [code]); the step does not.

    BatchNorm: `attack_batch_norm` while crafting ('batch_stats', for the published train mode, without its updates
    of the running statistics); 'train' on the clean, then on each attack's images.

    Args:
      task: loss and criterion.
      attack_losses: `(outputs, targets) -> [B]` each, to be maximized; at least one. For shapes
        `losses.shape.point_loss` and `mask_loss` [code].
      radius: eps by step; .07 at the end [code].
      num_steps: 20 [code].
      step_size: absolute, > 0; .01 [code].
      norm: 'linf' [code], 'l2' or 'l1'.
      start: 'ball' [ours; not known], 'clean' or 'gaussian'.
      attack_batch_norm: 'batch_stats' or 'eval'.

    Raises:
      ValueError: without an attack loss, or for a step size <= 0.

    References: arXiv 2102.02885 and its authors' code.
    """
    if not attack_losses or step_size <= 0:
        raise ValueError(f'two_attacks needs at least one attack loss, not {len(attack_losses)}, and a positive '
                         f'step_size, not {step_size}')
    attack = ascent(num_steps=num_steps, norm=norm, start=start)

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> tuple[Array, ...]:
        victim = victim_of(task, forward, params, model_state, batch_norm=attack_batch_norm)
        images, targets, eps = batch['image'], task.targets(batch), radius(step, keys)
        knobs = {'step_size': jnp.full(len(images), step_size)}
        return tuple(perturb(with_loss(attack, climbed), victim, rng.fold(keys, _ATTACKS + number), images,
                             targets, eps=eps, knobs=knobs) for number, climbed in enumerate(attack_losses))

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: tuple[Array, ...], step: Array, keys: Array) -> tuple:
        targets = task.targets(batch)
        clean, model_state = forward(params, model_state, batch['image'], batch_norm='train')
        total, robust = task.loss(clean, targets) / 2, jnp.ones(len(batch['image']), bool)
        for images in crafted:
            outputs, model_state = forward(params, model_state, images, batch_norm='train')
            total = total + task.loss(outputs, targets) / (2 * len(crafted))
            robust = robust & task.acceptable(outputs, targets)
        metrics = {'accuracy': task.acceptable(clean, targets), 'robust_accuracy': robust}
        return total, (model_state, metrics)

    return stateless(craft, loss)
