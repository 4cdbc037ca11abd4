"""Free adversarial training: a batch is replayed, and the perturbation carried over from step to step.

Contents: `free_at`.

Example:

    defense = free_at(task, radius=constant(8 / 255), batch_size=128)
    batches = train_batches(source, batch_size=128, seed=0, replays=8)
    step = make_train_step(forward, defense, optimizer, replays=8, ...)
"""
import jax
import jax.numpy as jnp

from medrobust_jax.attacks import looks
from medrobust_jax.core import balls
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Batch, Defense, Forward, PyTree, Task
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.defenses.standard import stateless, victim_of


def free_at(task: Task, *, radius: Radius, batch_size: int, relative_step_size: float = 1.0, norm: str = 'linf',
            attack_batch_norm: str = 'batch_stats') -> Defense:
    """`min E [loss(f(x + d_b), y)]`, d_b the perturbation that belongs to place b of a batch, whatever lies there.

        train on          x' = clip(x + P(d), 0, 1)
        then              d <- P(d + step sign grad_x loss(f(x'), y)),      P onto the ball of radius eps

    One ascent step per update: the perturbation for a batch grows while the batch is replayed, which is the
    business of the loader and the training step (`replays`, m in the paper; 8 there for CIFAR-10 [mem]). d starts
    at 0 and is never reset. The number of updates is that of any other defense, so that with m replays a
    training passes over the data 1/m as often, as in the paper. With m = 1 it is one-step adversarial training
    whose start is carried over from the batch before.

    Cost: in the paper one backward pass gives the gradients for weights and images both. Here they are two, since
    crafting and training are apart: one forward and one backward pass per update more than natural training, as
    one-step adversarial training costs, and never more where the compiler finds what the two have in common.

    BatchNorm: `attack_batch_norm` for the gradient with respect to images ('batch_stats': in the paper it comes
    from the pass in train mode), 'train' on x'.

    Args:
      task: loss and criterion.
      radius: eps by step.
      batch_size: B, of the whole batch; a shorter batch is padded.
      relative_step_size: step / eps, > 0; 1 as in the paper.
      norm: 'linf', 'l2' or 'l1'.
      attack_batch_norm: 'batch_stats' or 'eval'.

    Raises:
      ValueError: for a step or batch size that is not positive.

    References: Shafahi et al., Adversarial Training for Free!, NeurIPS 2019, algorithm 1.
    """
    if relative_step_size <= 0 or batch_size < 1:
        raise ValueError(f'relative_step_size = {relative_step_size} and batch_size = {batch_size} must be '
                         f'positive')

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: Array, batch: Batch, step: Array,
              keys: Array) -> dict[str, Array]:
        victim = victim_of(task, forward, params, model_state, batch_norm=attack_batch_norm)
        clean = jax.lax.stop_gradient(batch['image'])
        eps = jnp.broadcast_to(radius(step, keys), len(clean))
        start = balls.project(state, eps, norm=norm)
        images = balls.to_box(clean + start)
        gradient = looks.loss_and_gradient(victim, looks.start_state(keys, images, {}), task.targets(batch))[2]
        length = relative_step_size * eps
        direction = balls.ascent_direction(gradient, norm=norm, room=balls.room_of(images, length))
        moved = balls.project(start + per_example(length, images) * direction, eps, norm=norm)
        return jax.lax.stop_gradient({'images': images, 'next': moved})

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, crafted: PyTree,
             step: Array, keys: Array) -> tuple:
        targets = task.targets(batch)
        outputs, model_state = forward(params, model_state, crafted['images'], batch_norm='train')
        return task.loss(outputs, targets), (model_state, {'robust_accuracy': task.acceptable(outputs, targets)})

    return stateless(craft, loss)._replace(
        start=lambda state, params, model_state, image_shape: jnp.zeros((batch_size, *image_shape)),
        update=lambda state, batch, crafted, metrics: crafted['next'])
