"""Temporal ensembling: adversarial outputs pulled towards what the network used to say of the clean example.

Contents: `temporal_ensembling`, `flat_outputs`.

Example:

    defense = temporal_ensembling(task, pgd(num_steps=10), radius=constant(8 / 255), total_steps=10_000)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.attacks.run import perturb
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, Batch, Defense, Forward, Outputs, PyTree, Task, Victim
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.losses.segmentation import final_logits


def temporal_ensembling(task: Task, attack: Attack, *, radius: Radius, total_steps: int, weight: float = 300.0,
                        decay: float = 0.9, ramp: tuple[float, float] = (0.5, 0.7), memory_limit: float = 4e9,
                        flat: Callable[[Outputs], Array] | None = None,
                        attack_batch_norm: str = 'eval') -> Defense:
    """`min E [loss(f(x'), y) + w mean((p' - t_i)^2)]`, t_i the moving average of the example's clean outputs.

        t_i <- decay t_i + (1 - decay) p(x),    divided by decay's accumulated weight 1 - decay^draws
        w    = weight exp(-5 (1 - phase)^2),    phase from 0 to 1 over `ramp`; 0 before it

    x' climbs the same sum. p are softmax outputs for classification, the full-size logits alone for segmentation
    [ours: coarser ones exist in training only], else all outputs as they are, flattened [code]. Averages of
    softmax outputs, divided so, add up to 1: the paper's renormalization. Table and penalty start together, at
    ramp[0] of the training [code]; an entry takes its example's new output before it is used [ours], so none is
    ever empty. Clean outputs come from a pass of their own in 'eval' mode [code].

    The state is a table of N x D float32 for N training examples with D outputs, saved with every checkpoint: 40
    kB for 1000 examples of 10 classes, 1 GB for 1000 label maps of 256 x 256 with 4 classes. It knows nothing of
    augmentation: where outputs are places (maps, points, boxes), train without transforms that move them.

    BatchNorm: 'eval' for the clean pass, `attack_batch_norm` while crafting, 'train' on the adversarial images.

    Args:
      task: loss and criterion.
      attack: how x' is crafted.
      radius: eps by step.
      total_steps: the length of the training, > 0.
      weight: >= 0, at the end of the ramp; 300 [code]. 0 is `pgd_at`, at one more pass.
      decay: of the average, in [0, 1); .9 [code].
      ramp: (start, end) as shares of the training; (.5, .7) [code].
      memory_limit: bytes that the table may take.
      flat: `outputs -> [B, D]`; default as above.
      attack_batch_norm: 'eval' or 'batch_stats'.

    Raises:
      ValueError: for values out of range, and from `init` for a table above the limit.

    References: Dong et al., Exploring Memorization in Adversarial Training, ICLR 2022.
    """
    if weight < 0 or not 0 <= decay < 1 or not 0 <= ramp[0] <= ramp[1] <= 1 or total_steps < 1:
        raise ValueError(f'weight = {weight} and total_steps = {total_steps} must be positive, decay = {decay} in '
                         f'[0, 1), ramp = {ramp} two rising shares of the training')
    to_flat = flat or _FLAT.get(task.name, flat_outputs)

    def init(num_train: int, example_outputs: PyTree, key: Array) -> dict[str, Array]:
        width = jax.eval_shape(to_flat, example_outputs).shape[1]
        size = 4 * num_train * width
        if size > memory_limit:
            raise ValueError(f'temporal ensembling keeps {width} outputs of each of {num_train} training '
                             f'examples, {size / 1e9:.3g} GB, above memory_limit = {memory_limit / 1e9:.3g} GB; '
                             f'choose fewer examples, smaller images, or raise memory_limit')
        return {'average': jnp.zeros((num_train, width)), 'mass': jnp.zeros(num_train)}

    def penalty_weight(step: Array) -> Array:
        progress = step / total_steps
        phase = jnp.clip((progress - ramp[0]) / max(ramp[1] - ramp[0], 1e-9), 0, 1)
        return jnp.where(progress >= ramp[0], weight * jnp.exp(-5 * (1 - phase) ** 2), 0.0)

    def penalized(outputs: Outputs, targets: PyTree, goal: Array, step: Array) -> Array:
        pull = jnp.mean((to_flat(outputs) - goal) ** 2, axis=1)
        return task.loss(outputs, targets) + penalty_weight(step) * pull

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> dict[str, Array]:
        images, targets, index = jax.lax.stop_gradient(batch['image']), task.targets(batch), batch['index']
        clean = to_flat(forward(params, model_state, images, batch_norm='eval')[0])
        average = decay * state['average'].at[index].get(mode='fill', fill_value=0) + (1 - decay) * clean
        mass = decay * state['mass'].at[index].get(mode='fill', fill_value=0) + (1 - decay)
        goal = jax.lax.stop_gradient(average / per_example(mass, average))
        victim = Victim(lambda x, keys: forward(params, model_state, x, batch_norm=attack_batch_norm)[0],
                        lambda outputs, both: penalized(outputs, both[0], both[1], step),
                        lambda outputs, both: task.acceptable(outputs, both[0]))
        found = perturb(attack, victim, keys, images, (targets, goal), eps=radius(step, keys))
        started = jnp.broadcast_to(step >= ramp[0] * total_steps, mass.shape)
        return jax.lax.stop_gradient({'images': found, 'goal': goal, 'average': average, 'mass': mass,
                                      'started': started})

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: PyTree, step: Array, keys: Array) -> tuple:
        targets = task.targets(batch)
        outputs, model_state = forward(params, model_state, crafted['images'], batch_norm='train')
        return (penalized(outputs, targets, crafted['goal'], step),
                (model_state, {'robust_accuracy': task.acceptable(outputs, targets)}))

    def update(state: PyTree, batch: Batch, crafted: PyTree, metrics: dict[str, Array]) -> dict[str, Array]:
        index, rows = batch['index'], len(state['mass'])
        again = jnp.tril(index[:, None] == index[None, :], k=-1).any(axis=1)  # only a row's first draw counts
        entered = jnp.where(batch['mask'] & crafted['started'] & ~again, index, rows)
        return {name: state[name].at[entered].set(crafted[name], mode='drop') for name in ('average', 'mass')}

    return Defense(init=init, craft=craft, loss=loss, update=update, end_epoch=lambda state, epoch: state)


def flat_outputs(outputs: Outputs) -> Array:
    """A tree of outputs `[B, ...]` as one array `[B, D]`."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(outputs)]
    return jnp.concatenate(leaves, axis=1).astype(jnp.float32)


_FLAT: dict[str, Callable[[Outputs], Array]] = {
    'classification': jax.nn.softmax, 'segmentation': lambda outputs: flat_outputs(final_logits(outputs))}
