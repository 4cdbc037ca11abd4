"""TRADES: clean accuracy traded against agreement with it in the ball.

Contents: `trades`.

Example:

    defense = trades(task, pgd(num_steps=10, start='gaussian'), radius=constant(8 / 255), beta=6.0)
"""
import jax
import jax.numpy as jnp

from medrobust_jax.attacks.run import perturb
from medrobust_jax.core.types import Array, Attack, Batch, Defense, Forward, PyTree, Task, Victim
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.defenses.standard import stateless


def trades(task: Task, attack: Attack, *, radius: Radius, beta: float = 6.0,
           attack_batch_norm: str = 'eval') -> Defense:
    """`min E [loss(f(x), y) + beta D(f(x), f(x'))]`, `x' = argmax D(f(x), f(x'))` in the ball.

    D is the task's divergence, `KL(p || p')` for classification; gradients flow through both of its
    arguments. BatchNorm: `attack_batch_norm` while crafting ('eval' in the authors' code), then
    'train' on the clean and, in a pass of its own, on the adversarial images.

    Args:
      task: loss, criterion and divergence.
      attack: how x' is crafted; the paper starts at x + .001 N(0, 1), i.e. `start='gaussian'`,
        since the divergence has no gradient at x.
      radius: eps by step.
      beta: >= 0; 6 as in the paper and the survey. 0 is natural training.
      attack_batch_norm: 'eval' or 'batch_stats'.

    Raises:
      ValueError: for beta < 0.

    References: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy,
    ICML 2019, eq. (5).
    """
    if beta < 0:
        raise ValueError(f'beta = {beta} must not be negative')

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> Array:
        def outputs_of(images: Array, keys: Array) -> PyTree:
            return forward(params, model_state, images, batch_norm=attack_batch_norm)[0]

        victim = Victim(outputs_of, lambda outputs, clean: task.divergence(clean, outputs),
                        lambda outputs, clean: jnp.ones(len(batch['image']), bool))
        clean = jax.lax.stop_gradient(outputs_of(batch['image'], keys))
        return perturb(attack, victim, keys, batch['image'], clean, eps=radius(step, keys))

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: Array, step: Array, keys: Array) -> tuple:
        targets = task.targets(batch)
        clean, model_state = forward(params, model_state, batch['image'], batch_norm='train')
        outputs, model_state = forward(params, model_state, crafted, batch_norm='train')
        total = task.loss(clean, targets) + beta * task.divergence(clean, outputs)
        metrics = {'accuracy': task.acceptable(clean, targets),
                   'robust_accuracy': task.acceptable(outputs, targets)}
        return total, (model_state, metrics)

    return stateless(craft, loss)
