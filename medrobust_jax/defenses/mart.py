"""MART: adversarial training that minds the examples which are wrong without an attack.

Contents: `mart`.

Example:

    defense = mart(task, pgd(num_steps=10, start='gaussian'), radius=constant(8 / 255), beta=6.0)
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array, Attack, Batch, Defense, Forward, Outputs, PyTree, Targets, Task
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.defenses.standard import attacked_by, stateless


def mart(task: Task, attack: Attack, *, radius: Radius, beta: float = 6.0,
         attack_batch_norm: str = 'eval') -> Defense:
    """`min E [loss(f(x'), y) - log(1.0001 - max_{j != y} p'_j) + beta D(f(x), f(x')) (1 - c)]`.

    For classification p' is the softmax at x', D is `KL(p || p')` and `c = p_y`, the clean probability of the
    truth. Gradients flow through both passes and through c [mem].

    Other tasks [ours]: the term with the runner-up is dropped, D is the task's divergence, and
    `c = exp(-loss(f(x), y))` where the clean output meets the task's criterion, 0 where it does not. For
    cross-entropy `exp(-loss)` is p_y, so that an example that is wrong without an attack counts in full, and one
    that is right by how much is left to learn.

    BatchNorm: `attack_batch_norm` while crafting, 'train' on the clean, then on the adversarial images.

    Args:
      task: loss, criterion and divergence; 'classification' by its name.
      attack: how x' is crafted on the task's loss; the paper's starts at x + .001 N(0, 1), `start='gaussian'`.
      radius: eps by step.
      beta: >= 0; 6 in the survey, 5 or 6 in the paper [mem].
      attack_batch_norm: 'eval' (the authors') or 'batch_stats'.

    Raises:
      ValueError: for beta < 0.

    References: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
    ICLR 2020.
    """
    if beta < 0:
        raise ValueError(f'beta = {beta} must not be negative')
    classifies = task.name == 'classification'

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: Array, step: Array, keys: Array) -> tuple:
        targets = task.targets(batch)
        clean, model_state = forward(params, model_state, batch['image'], batch_norm='train')
        outputs, model_state = forward(params, model_state, crafted, batch_norm='train')
        total = task.loss(outputs, targets)
        if classifies:
            total = total - jnp.log(1.0001 - _runner_up(outputs, targets))
            confidence = jnp.sum(jnp.where(_is_label(clean, targets), jax.nn.softmax(clean), 0), axis=-1)
        else:
            confidence = jnp.exp(-jnp.maximum(task.loss(clean, targets), 0)) * task.acceptable(clean, targets)
        total = total + beta * task.divergence(clean, outputs) * (1 - confidence)
        metrics = {'accuracy': task.acceptable(clean, targets),
                   'robust_accuracy': task.acceptable(outputs, targets)}
        return total, (model_state, metrics)

    return stateless(attacked_by(task, attack, radius, batch_norm=attack_batch_norm), loss)


def _is_label(logits: Outputs, labels: Targets) -> Array:
    return jnp.arange(logits.shape[-1]) == labels[:, None]


def _runner_up(logits: Outputs, labels: Targets) -> Array:
    """The largest probability of another class, `[B]`."""
    return jnp.max(jnp.where(_is_label(logits, labels), 0, jax.nn.softmax(logits)), axis=-1)
