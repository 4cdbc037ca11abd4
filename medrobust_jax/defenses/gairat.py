"""GAIRAT: adversarial training that weighs examples by how soon the attack succeeds on them.

Contents: `gairat`, `geometry_weights`.

Example:

    defense = gairat(task, pgd(num_steps=10), radius=constant(8 / 255), burn_in_steps=60 * steps_per_epoch)
"""
import jax
import jax.numpy as jnp

from medrobust_jax.attacks.run import advance
from medrobust_jax.core.masking import masked_mean
from medrobust_jax.core.types import Array, Attack, Batch, Defense, Forward, PyTree, Task
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.defenses.standard import stateless, victim_of


def gairat(task: Task, attack: Attack, *, radius: Radius, burn_in_steps: int, bias: float = -1.0,
           attack_batch_norm: str = 'eval') -> Defense:
    """`min E [w loss(f(x'), y)]`, w large where few of the attack's iterates met the criterion.

    See `geometry_weights`; kappa is the number of the iterates x_0 .. x_{K-1} whose outputs met the task's
    criterion, a count and not a streak [code], which the attack counts anyway. For every task alike, through
    `task.acceptable` [ours for tasks other than classification]. Before `burn_in_steps` it is `pgd_at`.

    BatchNorm: `attack_batch_norm` while crafting, 'train' on the adversarial images.

    Args:
      task: loss and criterion.
      attack: how x' is crafted; K is its number of steps.
      radius: eps by step.
      burn_in_steps: steps with equal weights, >= 0.
      bias: Lambda in the weights; -1 [code]. Larger values tell examples less apart.
      attack_batch_norm: 'eval' or 'batch_stats'.

    Raises:
      ValueError: for burn_in_steps < 0.

    References: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, ICLR 2021.
    """
    if burn_in_steps < 0:
        raise ValueError(f'burn_in_steps = {burn_in_steps} must not be negative')

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> dict[str, Array]:
        victim = victim_of(task, forward, params, model_state, batch_norm=attack_batch_norm)
        last = advance(attack, victim, keys, jax.lax.stop_gradient(batch['image']), task.targets(batch),
                       eps=radius(step, keys))
        weights = geometry_weights(last.looks_acceptable, batch['mask'], num_steps=attack.num_steps, bias=bias)
        weights = jnp.where(step < burn_in_steps, 1.0, weights)
        return jax.lax.stop_gradient({'images': last.images, 'weight': weights, 'kappa': last.looks_acceptable})

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: PyTree, step: Array, keys: Array) -> tuple:
        targets = task.targets(batch)
        outputs, model_state = forward(params, model_state, crafted['images'], batch_norm='train')
        metrics = {'robust_accuracy': task.acceptable(outputs, targets), 'kappa': crafted['kappa']}
        return crafted['weight'] * task.loss(outputs, targets), (model_state, metrics)

    return stateless(craft, loss)


def geometry_weights(kappa: Array, mask: Array, *, num_steps: int, bias: float = -1.0) -> Array:
    """`(1 + tanh(bias + 5 (1 - 2 kappa / K))) / 2`, divided by its mean over the batch's real rows.

    Args:
      kappa: `[B]`, looks that met the criterion, 0..K.
      mask: `[B]` bool, False on padding.
      num_steps: K.
      bias: Lambda.

    Returns:
      `[B]`, with mean 1 over the mask.
    """
    # (1 + tanh z) / 2 = sigmoid(2 z), which does not round to 0 where every iterate is right.
    weights = jax.nn.sigmoid(2 * (bias + 5 * (1 - 2 * kappa / num_steps)))
    return weights / jnp.maximum(masked_mean(weights, mask), 1e-30)
