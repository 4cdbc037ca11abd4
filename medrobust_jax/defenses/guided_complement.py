"""Training with guided complement entropy: natural training that makes the wrong classes equally improbable.

Contents: `guided_complement`.

Example:

    defense = guided_complement(classification(4), alpha=0.333)
"""
from functools import partial

from medrobust_jax.core.types import Defense, Task
from medrobust_jax.defenses.standard import natural
from medrobust_jax.losses.classification import guided_complement_entropy


def guided_complement(task: Task, *, alpha: float = 0.333) -> Defense:
    """Natural training on `losses.classification.guided_complement_entropy` in the place of cross-entropy.

    Args:
      task: classification with three classes or more.
      alpha: of the guiding factor `p_y^alpha`, >= 0; .333 [code].

    Raises:
      ValueError: for another task, two classes, or alpha < 0.

    References: Chen et al., Improving Adversarial Robustness via Guided Complement Entropy, ICCV 2019.
    """
    if task.name != 'classification' or task.num_outputs < 3:
        raise ValueError('guided complement entropy is defined for classification with three classes or more, '
                         f"not for the task '{task.name}' with {task.num_outputs} outputs: choose another defense")
    if alpha < 0:
        raise ValueError(f'alpha = {alpha} must not be negative')
    return natural(task._replace(loss=partial(guided_complement_entropy, alpha=alpha)))
