"""Robust self-training (RST): TRADES on labeled images and on those that a natural network has labeled.

Contents: `robust_self_training`.

Example:

    defense = robust_self_training(task, pgd(num_steps=10, start='gaussian'), helper, radius=constant(8 / 255))
"""
from collections.abc import Callable

import jax.numpy as jnp

from medrobust_jax.core import rng
from medrobust_jax.core.types import Array, Attack, Batch, Defense, Forward, Outputs, PyTree, Task
from medrobust_jax.defenses.pseudo_labels import unlabeled_batch
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.defenses.trades import trades

_UNLABELED = 0x2577  # keeps the draws for unlabeled images apart from those of their neighbors in the batch


def robust_self_training(task: Task, attack: Attack, helper: Callable[[Array], Outputs], *, radius: Radius,
                         beta: float = 6.0, pseudo_share: float = 0.5, attack_batch_norm: str = 'eval') -> Defense:
    """`min (1 - s) E [TRADES(x, y)] + s E [TRADES(x_u, yhat)]`, yhat what a natural network says of x_u.

    Each labeled example x travels with one unlabeled image x_u, batch['unlabeled']: batches are half labeled and
    half pseudo-labeled. Without that entry, or with a share of 0, it is `trades`.

    BatchNorm: as `trades`, labeled and unlabeled images in one pass, whose statistics are those of both.

    Args:
      task: as `trades`; the decision of `task.predict` is the pseudo-label.
      attack: as `trades`.
      helper: `images -> outputs` of a net trained naturally on the labeled examples; a constant.
      radius: eps by step.
      beta: as `trades`; 6.
      pseudo_share: s in [0, 1); 1/2, both halves alike.
      attack_batch_norm: as `trades`.

    Raises:
      ValueError: for a share out of range, or beta < 0.

    Differs from the paper in: the helper labels each image as it is augmented in this step, where there every
    image got one label before training.

    References: Carmon et al., Unlabeled Data Improves Adversarial Robustness, NeurIPS 2019, algorithm 1.
    """
    if not 0 <= pseudo_share < 1:
        raise ValueError(f'pseudo_share = {pseudo_share} must be in [0, 1)')
    base = trades(task, attack, radius=radius, beta=beta, attack_batch_norm=attack_batch_norm)
    if pseudo_share == 0:
        return base

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> PyTree:
        if 'unlabeled' not in batch:
            return base.craft(forward, params, model_state, state, batch, step, keys)
        both = _joined(batch, unlabeled_batch(task, batch, helper(batch['unlabeled'])))
        both_keys = jnp.concatenate([keys, rng.fold(keys, _UNLABELED)])
        images = base.craft(forward, params, model_state, state, both, step, both_keys)
        return {'both': both, 'images': images}

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, crafted: PyTree,
             step: Array, keys: Array) -> tuple:
        if 'unlabeled' not in batch:
            return base.loss(forward, params, model_state, state, batch, crafted, step, keys)
        losses, (model_state, metrics) = base.loss(forward, params, model_state, state, crafted['both'],
                                                   crafted['images'], step, keys)
        labeled, pseudo = jnp.split(losses, 2)
        halves = {name: jnp.split(values, 2) for name, values in metrics.items()}
        return ((1 - pseudo_share) * labeled + pseudo_share * pseudo,
                (model_state, {**{name: values[0] for name, values in halves.items()},
                               **{f'pseudo_{name}': values[1] for name, values in halves.items()}}))

    return base._replace(craft=craft, loss=loss)


def _joined(batch: Batch, pool: Batch) -> dict[str, PyTree]:
    """The rows of both, `[2 B]`: first the labeled, then the pseudo-labeled.

    Where one has fewer boxes per image than the other, zeros (no boxes, by 'box_mask') fill it up.
    """
    def rows(ours: Array, theirs: Array) -> Array:
        if ours.ndim > 1 and ours.shape[1] != theirs.shape[1]:
            most = max(ours.shape[1], theirs.shape[1])
            ours, theirs = (jnp.pad(each, [(0, 0), (0, most - each.shape[1]), *[(0, 0)] * (each.ndim - 2)])
                            for each in (ours, theirs))
        return jnp.concatenate([ours, theirs.astype(ours.dtype)])

    return {name: rows(batch[name], pool[name]) for name in pool}
