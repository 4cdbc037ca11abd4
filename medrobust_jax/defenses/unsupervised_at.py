"""Unsupervised adversarial training (UAT): labels teach what is right, unlabeled images to stay with it.

Contents: `unsupervised_at`, `MODES`.

Example:

    defense = unsupervised_at(task, pgd(num_steps=10), radius=constant(8 / 255), mode='online')
    both = unsupervised_at(task, pgd(num_steps=10), radius=constant(8 / 255), mode='both', helper=natural_net)
"""
from collections.abc import Callable

import jax

from medrobust_jax.attacks.run import perturb
from medrobust_jax.core import rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array, Attack, Batch, Defense, Forward, Outputs, PyTree, Targets, Task, Victim
from medrobust_jax.defenses.pseudo_labels import unlabeled_batch
from medrobust_jax.defenses.radius import Radius
from medrobust_jax.defenses.standard import natural

MODES = ('online', 'fixed', 'both')
_UNLABELED = 0x0A7E  # keeps the draws for unlabeled images apart from those of their neighbors in the batch


def unsupervised_at(task: Task, attack: Attack, *, radius: Radius, mode: str = 'online', weight: float = 5.0,
                    helper: Callable[[Array], Outputs] | None = None, attack_batch_norm: str = 'eval') -> Defense:
    """`min E [loss(f(x), y)] + weight E [U(x_u')]`, with x_u' the end of an attack that climbs U.

        'online'   U = D(stop f(x_u), f(x_u'))           KL(p || p') for classification
        'fixed'    U = loss(f(x_u'), yhat)               yhat what a natural network says of x_u
        'both'     the sum of the two

    Each labeled example x travels with one unlabeled image x_u, batch['unlabeled']; without that entry, or with
    weight 0, it is natural training. Unlike in TRADES no gradient flows through f(x_u).

    BatchNorm: `attack_batch_norm` while crafting; 'train' on the labeled, then on the attacked unlabeled images;
    'batch_stats' for the reference f(x_u) in the loss.

    Args:
      task: loss, criterion, divergence; the decision of `task.predict` is the pseudo-label.
      attack: must not start at the clean image for 'online', where D has no gradient.
      radius: eps by step.
      mode: see above; UAT-OT, UAT-FT and UAT++ in the paper.
      weight: >= 0; 5 [ours; the paper's is not known for certain].
      helper: for 'fixed' and 'both': `images -> outputs` of a net trained naturally on the labeled examples.
      attack_batch_norm: 'eval' or 'batch_stats'.

    Raises:
      ValueError: for an unknown mode, one that lacks its helper, or weight < 0.

    Differs from the paper in: the helper labels each image as it is augmented in this step; labeled images are
    trained on clean alone [ours] (they are attacked too where the pool holds them).

    References: Alayrac et al., Are Labels Required for Improving Adversarial Robustness?, NeurIPS 2019, recalled
    from memory.
    """
    if mode not in MODES:
        did_you_mean(mode, MODES, 'mode')
    if weight < 0 or (mode != 'online' and helper is None):
        raise ValueError(f"weight = {weight} must not be negative, and every mode but 'online' needs helper=; it "
                         f"is '{mode}'")
    supervised = natural(task)

    def objective(outputs: Outputs, reference: tuple[Outputs, Targets]) -> Array:
        clean, targets = reference
        if mode == 'online':
            return task.divergence(clean, outputs)
        fixed = task.loss(outputs, targets)
        return fixed if mode == 'fixed' else fixed + task.divergence(clean, outputs)

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> PyTree:
        if weight == 0 or 'unlabeled' not in batch:
            return ()
        images = batch['unlabeled']

        def outputs_of(images: Array, keys: Array) -> Outputs:
            return forward(params, model_state, images, batch_norm=attack_batch_norm)[0]

        clean = jax.lax.stop_gradient(outputs_of(images, keys))
        pool = unlabeled_batch(task, batch, clean if helper is None else helper(images))
        targets = task.targets(pool)
        victim = Victim(outputs_of, objective, lambda outputs, both: task.acceptable(outputs, both[1]))
        found = perturb(attack, victim, rng.fold(keys, _UNLABELED), images, (clean, targets),
                        eps=radius(step, keys))
        return {**pool, 'image': found}

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, crafted: PyTree,
             step: Array, keys: Array) -> tuple:
        total, (model_state, metrics) = supervised.loss(forward, params, model_state, state, batch, (), step, keys)
        if not crafted:
            return total, (model_state, metrics)
        clean = jax.lax.stop_gradient(
            forward(params, model_state, batch['unlabeled'], batch_norm='batch_stats')[0])
        outputs, model_state = forward(params, model_state, crafted['image'], batch_norm='train')
        targets = task.targets(crafted)
        return (total + weight * objective(outputs, (clean, targets)),
                (model_state, {**metrics, 'pseudo_agreement': task.acceptable(outputs, targets)}))

    return supervised._replace(craft=craft, loss=loss)
