"""SSAT: semi-supervised adversarial training, on attacked images that the network has labeled itself.

Contents: `ssat`.

Example:

    defense = ssat(task, fgsm(), radius=uniform_per_batch(0.001, 0.003))        # the paper's
    batch = {**labeled, 'unlabeled': images}                                    # [B, *spatial, C]
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.core import rng
from medrobust_jax.core.averages import moving_average
from medrobust_jax.core.types import Array, Attack, Batch, Defense, Forward, PyTree, Task
from medrobust_jax.defenses.pseudo_labels import unlabeled_batch
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.defenses.standard import attacked_by, natural

_UNLABELED = 0x55A7  # keeps the draws for unlabeled images apart from those of their neighbors in the batch


def ssat(task: Task, attack: Attack, *, radius: Radius, weight: float = 3.0, labeled_weight: float = 0.0,
         confidence: float = 0.0, teacher_decay: float | None = None,
         attack_batch_norm: str = 'batch_stats') -> Defense:
    """`min E [loss(f(x), y)] + weight E [loss(f(x_u'), yhat)]`, yhat what the network itself says of x_u.

        yhat = argmax f(x_u)                                        clean, the current weights, a constant
        x_u' = clip(x_u + eps sign grad loss(f(x_u), yhat), 0, 1)   for one step from x_u (`attacks.pgd.fgsm`)

    Each labeled example x travels with one unlabeled image x_u, batch['unlabeled']; without that entry, or with
    weight 0, it is natural training. For tasks other than classification yhat is what `task.predict` decides
    [ours].

    Options beyond the paper, off by default [ours]: any `attack` and radius; only pseudo-labels of enough
    `confidence`, the others' terms being 0; pseudo-labels by a teacher, a moving average of the weights, kept in
    the state; `labeled_weight E [loss(f(x'), y)]` on attacked labeled images.

    BatchNorm: `attack_batch_norm` for yhat and while crafting ('batch_stats', for the published train mode,
    without its updates of the running statistics), 'eval' for a teacher; 'train' on the labeled clean images, then
    on the unlabeled attacked ones, then on the labeled attacked ones, each a pass of its own.

    Args:
      task: loss, criterion and decision; 'classification' where a confidence is asked for.
      attack: how x_u' and x' are crafted; one step of size eps from the clean image [code].
      radius: eps by step; U(.001, .003), drawn per batch [code].
      weight: of the unlabeled term, >= 0; 3 [code].
      labeled_weight: of the labeled adversarial term, >= 0.
      confidence: the least probability of yhat that counts, in [0, 1).
      teacher_decay: of the teacher's moving average, in [0, 1); None: the network labels for itself [code].
      attack_batch_norm: 'batch_stats' or 'eval'.

    Raises:
      ValueError: for values out of range, or a confidence for another task than classification.

    References: Li, Pan and Zhu, Defending against adversarial attacks on medical imaging AI system, classification
    or detection?, arXiv 2006.13555, and its authors' code.
    """
    _check(task, weight, labeled_weight, confidence, teacher_decay)
    supervised, climb = natural(task), attacked_by(task, attack, radius, batch_norm=attack_batch_norm)

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> dict[str, PyTree]:
        crafted: dict[str, PyTree] = {}
        if weight > 0 and 'unlabeled' in batch:
            alone = teacher_decay is None
            labeler, mode = ((params, model_state), attack_batch_norm) if alone else (state, 'eval')
            outputs = forward(*labeler, batch['unlabeled'], batch_norm=mode)[0]
            pool = unlabeled_batch(task, batch, outputs)
            images = climb(forward, params, model_state, state, pool, step, rng.fold(keys, _UNLABELED))
            crafted['pool'] = {**pool, 'image': images, 'counts': _confident(outputs, confidence, batch['mask'])}
        if labeled_weight > 0:
            crafted['labeled'] = climb(forward, params, model_state, state, batch, step, keys)
        return crafted

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, crafted: PyTree,
             step: Array, keys: Array) -> tuple:
        total, (model_state, metrics) = supervised.loss(forward, params, model_state, state, batch, (), step, keys)
        if 'pool' in crafted:
            pool = crafted['pool']
            outputs, model_state = forward(params, model_state, pool['image'], batch_norm='train')
            targets = task.targets(pool)
            total = total + weight * jnp.where(pool['counts'], task.loss(outputs, targets), 0)
            metrics = {**metrics, 'pseudo_agreement': task.acceptable(outputs, targets),
                       'pseudo_labeled': pool['counts']}
        if 'labeled' in crafted:
            outputs, model_state = forward(params, model_state, crafted['labeled'], batch_norm='train')
            total = total + labeled_weight * task.loss(outputs, task.targets(batch))
            metrics = {**metrics, 'robust_accuracy': task.acceptable(outputs, task.targets(batch))}
        return total, (model_state, metrics)

    defense = supervised._replace(craft=craft, loss=loss)
    return defense if teacher_decay is None else defense._replace(
        start=lambda state, params, model_state, image_shape: (params, model_state), follow=_follow(teacher_decay))


def _follow(decay: float) -> Callable[..., PyTree]:
    """The teacher, `(params, model_state)`, after a step of the network."""
    return lambda teacher, params, model_state, step: moving_average(teacher, (params, model_state), step=step,
                                                                     decay=decay)


def _confident(outputs: PyTree, confidence: float, mask: Array) -> Array:
    """Which rows' most probable class is probable enough, `[B]` bool; all where nothing is asked for."""
    if confidence == 0:
        return jnp.ones(mask.shape, bool)
    return jax.nn.softmax(outputs, axis=-1).max(axis=-1) >= confidence


def _check(task: Task, weight: float, labeled_weight: float, confidence: float,
           teacher_decay: float | None) -> None:
    if weight < 0 or labeled_weight < 0:
        raise ValueError(f'weight = {weight} and labeled_weight = {labeled_weight} must not be negative')
    if not 0 <= confidence < 1 or (teacher_decay is not None and not 0 <= teacher_decay < 1):
        raise ValueError(f'confidence = {confidence} and teacher_decay = {teacher_decay} must be in [0, 1)')
    if confidence > 0 and task.name != 'classification':
        raise ValueError(f"confidence = {confidence} must be 0: the task '{task.name}' has no probability of its "
                         'decision')
