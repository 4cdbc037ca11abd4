"""HAT: TRADES with helper examples, so that the margin does not grow further than it must.

Contents: `hat`.

Example:

    helper = lambda images: apply_model(module)(params, model_state, images, batch_norm='eval')[0]
    defense = hat(task, pgd(num_steps=10, start='gaussian'), helper, radius=constant(8 / 255))
"""
from collections.abc import Callable

import jax

from medrobust_jax.core.types import Array, Attack, Batch, Defense, Forward, Outputs, PyTree, Task
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.defenses.trades import trades


def hat(task: Task, attack: Attack, helper: Callable[[Array], Outputs], *, radius: Radius, beta: float = 6.0,
        gamma: float = 1.0, reach: float = 3.5, attack_batch_norm: str = 'eval') -> Defense:
    """`min TRADES(x, x', y) + gamma loss(f(x + h (x' - x)), yhat)`, yhat what a natural net sees in x'.

    Helper images lie beyond the ball, in the attack's direction, and are not clipped to [0, 1]. They carry the
    label that a naturally trained net gives to x', which is often the attack's: the network shall be robust in the
    ball, and need not be outside.

    Classification: `yhat = argmax helper(x')` and the task's loss. Other tasks [ours], whose outputs are no
    targets: the divergence of f's outputs from the helper's.

    BatchNorm: as `trades`; then 'train' on the helper images in a pass of their own.

    Args:
      task: loss, criterion, divergence.
      attack: as `trades`.
      helper: `images -> outputs` of a net trained naturally on the same task; a constant.
      radius: eps by step.
      beta: as `trades`; in the survey 6, for Messidor 12 (binary) and 3 (4 grades) [code].
      gamma: >= 0; 1 in the survey [code]. 0 is TRADES.
      reach: h; 3.5 in the survey [code].
      attack_batch_norm: as `trades`.

    Raises:
      ValueError: for beta or gamma < 0.

    References: Rade and Moosavi-Dezfooli, Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness
    Trade-off, ICLR 2022.
    """
    if gamma < 0:
        raise ValueError(f'gamma = {gamma} must not be negative')
    base = trades(task, attack, radius=radius, beta=beta, attack_batch_norm=attack_batch_norm)
    if gamma == 0:
        return base

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: Array, step: Array, keys: Array) -> tuple:
        total, (model_state, metrics) = base.loss(forward, params, model_state, state, batch, crafted, step, keys)
        beyond = batch['image'] + reach * (crafted - batch['image'])
        seen = jax.lax.stop_gradient(helper(crafted))
        outputs, model_state = forward(params, model_state, beyond, batch_norm='train')
        if task.name == 'classification':
            extra = task.loss(outputs, seen.argmax(axis=-1))
        else:
            extra = task.divergence(seen, outputs)
        return total + gamma * extra, (model_state, metrics)

    return base._replace(loss=loss)
