"""Adversarial training on the images an attack finds (PGD-AT, Madry et al.).

Contents: `pgd_at`.

Example:

    defense = pgd_at(task, pgd(num_steps=10, relative_step_size=0.25), radius=constant(8 / 255))
"""
from medrobust_jax.core.types import Array, Attack, Batch, Defense, Forward, PyTree, Task
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.defenses.standard import attacked_by, stateless


def pgd_at(task: Task, attack: Attack, *, radius: Radius, clean_weight: float = 0.0,
           attack_batch_norm: str = 'eval') -> Defense:
    """`min E [(1 - w) loss(f(x'), y) + w loss(f(x), y)]` with x' the attack's last iterate.

    BatchNorm: `attack_batch_norm` while crafting; 'train' on the adversarial images, after 'train'
    on the clean ones where clean_weight > 0.

    Args:
      task: loss and criterion.
      attack: how x' is crafted. The survey's: PGD-10 with steps of .5, .25, .25, .25 eps for
        eps 1, 2, 4, 8 / 255 [code].
      radius: eps by step; `uniform_per_batch` gives training with eps drawn per batch.
      clean_weight: w in [0, 1); 0 is the paper's.
      attack_batch_norm: 'eval' [ours] or 'batch_stats'.

    Raises:
      ValueError: for clean_weight outside [0, 1).

    References: Madry et al., ICLR 2018, eq. (2.1).
    """
    if not 0 <= clean_weight < 1:
        raise ValueError(f'clean_weight = {clean_weight} must be in [0, 1)')

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: Array, step: Array, keys: Array) -> tuple:
        targets = task.targets(batch)
        total = 0.0
        if clean_weight > 0:
            clean, model_state = forward(params, model_state, batch['image'], batch_norm='train')
            total = clean_weight * task.loss(clean, targets)
        outputs, model_state = forward(params, model_state, crafted, batch_norm='train')
        total = total + (1 - clean_weight) * task.loss(outputs, targets)
        return total, (model_state, {'robust_accuracy': task.acceptable(outputs, targets)})

    return stateless(attacked_by(task, attack, radius, batch_norm=attack_batch_norm), loss)
