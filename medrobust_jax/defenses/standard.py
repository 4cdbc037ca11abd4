"""Natural training, and the pieces that every defense is made of.

Contents: `natural`, `victim_of`, `attacked_by`, `stateless`.

Example:

    defense = natural(classification(num_classes=2))
"""
from collections.abc import Callable

from medrobust_jax.attacks.run import perturb
from medrobust_jax.core.types import Array, Attack, Batch, Defense, Forward, PyTree, Task, Victim
from medrobust_jax.defenses.radius import Radius


def stateless(craft: Callable[..., PyTree], loss: Callable[..., tuple]) -> Defense:
    """A defense that keeps nothing between steps."""
    return Defense(init=lambda num_train, example_outputs, key: (), craft=craft, loss=loss,
                   update=lambda state, batch, crafted, metrics: state, end_epoch=lambda state, epoch: state)


def victim_of(task: Task, forward: Forward, params: PyTree, model_state: PyTree, *, batch_norm: str) -> Victim:
    """The network in training as an attack sees it.

    Args:
      task: gives the loss and the criterion.
      forward: the model.
      params: its weights.
      model_state: its running statistics.
      batch_norm: 'eval' (running statistics; examples stay independent) or 'batch_stats' (the
        batch's, without an update).
    """
    return Victim(lambda images, keys: forward(params, model_state, images, batch_norm=batch_norm)[0],
                  task.loss, task.acceptable)


def attacked_by(task: Task, attack: Attack, radius: Radius, *, batch_norm: str) -> Callable[..., Array]:
    """A defense's `craft`: the last iterates of `attack` on the task's loss, in balls of `radius`."""
    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> Array:
        victim = victim_of(task, forward, params, model_state, batch_norm=batch_norm)
        return perturb(attack, victim, keys, batch['image'], task.targets(batch), eps=radius(step, keys))

    return craft


def natural(task: Task) -> Defense:
    """Training on clean images: `loss(f(x), y)`, BatchNorm in 'train' mode."""
    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: PyTree, step: Array, keys: Array) -> tuple:
        outputs, model_state = forward(params, model_state, batch['image'], batch_norm='train')
        targets = task.targets(batch)
        return task.loss(outputs, targets), (model_state, {'accuracy': task.acceptable(outputs, targets)})

    return stateless(lambda *args: (), loss)
