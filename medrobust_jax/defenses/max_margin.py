"""MMA: direct maximization of each example's margin.

Contents: `max_margin`, `soft_margin_holds`.

Example:

    defense = max_margin(task, d_max=0.1, num_steps=10, norm='linf')
"""
import math

import jax
import jax.numpy as jnp

from medrobust_jax.attacks.ascent import ascent, bisect
from medrobust_jax.attacks.looks import pass_keys
from medrobust_jax.attacks.run import advance
from medrobust_jax.core import balls
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Batch, Defense, Forward, Outputs, PyTree, Targets, Task
from medrobust_jax.defenses.adaptive_margin import margins_of
from medrobust_jax.defenses.standard import victim_of


def max_margin(task: Task, *, d_max: float, num_steps: int = 10, relative_step_size: float = 0.25,
               norm: str = 'linf', start_margin: float | None = None, clean_share: float = 1 / 3,
               num_bisections: int = 10, attack_batch_norm: str = 'eval') -> Defense:
    """`min E [(1 - s) (loss(f(x*), y) if right and eps_i < d_max; loss(f(x), y) if wrong) + s loss(f(x), y)]`.

    x* is where the example's criterion fails first on the way to what PGD at radius eps_i finds: PGD, then
    bisection along its direction, inward where the end of PGD fails and outward up to 1.05 d_max where it does
    not. An example that is right and whose margin has reached d_max adds nothing but its clean share. eps_i
    follows the distance of x*.

    'Fails' means for classification that the soft-logit margin `log sum_{j != y} exp z_j - z_y` is positive, i.e.
    p_y < 1/2; for other tasks that the criterion is not met [ours]. 'Right' is the task's criterion.

    State: 'margins' [N] float32, what PGD's radius will be at the example's next draw. BatchNorm:
    `attack_batch_norm` while crafting; 'train' on the clean, then on the crafted images.

    Args:
      task: loss and criterion; 'classification' by its name.
      d_max: the largest margin that is asked for, > 0, in the norm's units. PGD's radius stays below 1.05 d_max
        [mem].
      num_steps: K >= 1, of PGD from a random start.
      relative_step_size: step / eps_i, > 0; .25 at 10 steps [mem].
      norm: 'linf', 'l2' or 'l1'.
      start_margin: eps_i at the beginning and the least it may be; default d_max / 20 [ours].
      clean_share: s in [0, 1); 1/3 [code].
      num_bisections: 10 [code].
      attack_batch_norm: 'eval' or 'batch_stats'.

    Raises:
      ValueError: for values out of range.

    References: Ding et al., MMA Training: Direct Input Space Margin Maximization through Adversarial Training,
    ICLR 2020, algorithms 1 and 2.
    """
    least = d_max / 20 if start_margin is None else start_margin
    if not 0 < least <= d_max < math.inf or not 0 <= clean_share < 1 or relative_step_size <= 0:
        raise ValueError(f'max_margin needs 0 < start_margin <= d_max, clean_share in [0, 1) and a positive '
                         f'relative_step_size, not {least}, {d_max}, {clean_share} and {relative_step_size}')
    attack = ascent(num_steps=num_steps, norm=norm, start='ball')
    meets_margin = soft_margin_holds if task.name == 'classification' else task.acceptable

    def init(num_train: int, example_outputs: PyTree, key: Array) -> dict[str, Array]:
        return {'margins': jnp.full(num_train, least, jnp.float32)}

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> dict[str, Array]:
        victim = victim_of(task, forward, params, model_state, batch_norm=attack_batch_norm)
        images, targets = jax.lax.stop_gradient(batch['image']), task.targets(batch)
        eps = margins_of(state, batch, padding=least)
        last = advance(attack, victim, keys, images, targets, eps=eps,
                       knobs={'step_size': relative_step_size * eps})

        def holds(looked_at: Array) -> Array:
            return meets_margin(victim.forward(looked_at, pass_keys(last)), targets)

        size = balls.norm_of(last.images - images, norm=norm)
        unit = (last.images - images) / per_example(jnp.where(size > 0, size, 1), images)
        within = per_example(~holds(last.images), images)
        farthest = images + 1.05 * d_max * unit
        near = jnp.where(within, images, last.images)
        far = jnp.where(within, last.images, farthest)
        found = balls.to_box(bisect(holds, near, far, num_steps=num_bisections))
        right = task.acceptable(victim.forward(images, pass_keys(last)), targets)
        found = jnp.where(per_example(right, images), found, images)
        distance = jnp.clip(balls.norm_of(found - images, norm=norm), least, 1.05 * d_max)
        return jax.lax.stop_gradient({'images': found, 'right': right, 'distance': distance, 'margin': eps})

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: PyTree, step: Array, keys: Array) -> tuple:
        targets, total = task.targets(batch), 0.0
        counts = ~crafted['right'] | (crafted['distance'] < d_max)
        metrics = {'margin': crafted['margin'], 'accuracy': crafted['right']}
        if clean_share > 0:
            clean, model_state = forward(params, model_state, batch['image'], batch_norm='train')
            total, metrics['accuracy'] = clean_share * task.loss(clean, targets), task.acceptable(clean, targets)
        outputs, model_state = forward(params, model_state, crafted['images'], batch_norm='train')
        total = total + (1 - clean_share) * jnp.where(counts, task.loss(outputs, targets), 0)
        return total, (model_state, metrics)

    def update(state: PyTree, batch: Batch, crafted: PyTree, metrics: dict[str, Array]) -> dict[str, Array]:
        index, rows = batch['index'], len(state['margins'])
        again = jnp.tril(index[:, None] == index[None, :], k=-1).any(axis=1)  # only a row's first draw counts
        entered = jnp.where(batch['mask'] & crafted['right'] & ~again, index, rows)
        return {'margins': state['margins'].at[entered].set(crafted['distance'], mode='drop')}

    return Defense(init=init, craft=craft, loss=loss, update=update, end_epoch=lambda state, epoch: state)


def soft_margin_holds(logits: Outputs, labels: Targets) -> Array:
    """Whether `z_y >= log sum_{j != y} exp z_j`, i.e. p_y >= 1/2; `[B]` bool, False where a logit is NaN."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    return jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == labels[:, None], probabilities, 0), axis=-1) >= 0.5
