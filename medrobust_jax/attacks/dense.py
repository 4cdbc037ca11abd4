r"""PGD for dense predictions: SegPGD and CosPGD.

Both climb a cross-entropy that weighs pixels, so that gradients are not spent on pixels already wrong:

    SegPGD:  mean_i w_i CE_i,   w_i = 1 - lambda on right pixels, lambda on wrong ones,  lambda = t / (2 K)
    CosPGD:  mean_i cos(softmax z_i, onehot y_i) CE_i

They take outputs that are logits per pixel `[B, *spatial, C]` and targets `[B, *spatial]`.

Contents: `climbing` (any attack, along another objective that may change from step to step), `segpgd`,
`cospgd`.

Example:

    attack = segpgd(num_steps=20, norm='linf')
    result = run(attack, victim, keys, images, targets, eps=4 / 255)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.core.types import Array, Attack, AttackState, Outputs, Targets, Victim
from medrobust_jax.losses.pixelwise import balanced_cross_entropy, cosine_cross_entropy

Objective = Callable[[Outputs, Targets, Array], Array]


def climbing(attack: Attack, objective: Objective) -> Attack:
    """Follows the gradient of `objective`, while the victim's own loss is recorded.

    Unlike `wrappers.with_loss`, the records stay comparable between steps and between attacks, and an
    attack that steers by the loss's value (APGD with loss='task') steers by the victim's.

    Args:
      attack: an attack that climbs the victim's loss by its gradient; not one made by `averaged_over`.
      objective: `(outputs, targets, look [B]) -> [B]`; `look` counts from 0, in every restart anew.

    Returns:
      The attack.
    """
    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        def loss(outputs: Outputs, targets: Targets) -> Array:
            climbed = objective(outputs, targets, state.step)
            # The value of the victim's loss with the gradient of the objective.
            return jax.lax.stop_gradient(victim.loss(outputs, targets)) + _only_gradient(climbed)

        return attack.step(victim._replace(loss=loss), images, targets, state)

    return attack._replace(step=step)


def segpgd(*, num_steps: int = 20, norm: str = 'linf', relative_step_size: float | None = None,
           start: str = 'ball') -> Attack:
    """SegPGD: at first all weight is on the pixels that are right, at last wrong ones weigh nearly as much.

    Args:
      num_steps: K >= 1.
      norm: 'linf', 'l2' or 'l1'; the paper's is 'linf'.
      relative_step_size: step / eps; default 2.5 / K [ours].
      start: 'ball', 'clean' or 'gaussian'.

    Returns:
      The attack. Recorded is the victim's own loss.

    References:
      Gu et al., SegPGD: An Effective and Efficient Adversarial Attack for Evaluating and Boosting
      Segmentation Robustness, ECCV 2022, algorithm 1, with t from 0.
    """
    attack = pgd(num_steps=num_steps, norm=norm, relative_step_size=relative_step_size, start=start)
    return climbing(attack, lambda outputs, targets, look: balanced_cross_entropy(
        outputs, targets, wrong_weight(look, num_steps)))


def cospgd(*, num_steps: int = 20, norm: str = 'linf', relative_step_size: float | None = None,
           start: str = 'ball') -> Attack:
    """CosPGD: every pixel weighs by how well its softmax output still agrees with its target.

    Args:
      num_steps: K >= 1.
      norm: 'linf', 'l2' or 'l1'.
      relative_step_size: step / eps; default 2.5 / K [ours].
      start: 'ball', 'clean' or 'gaussian'.

    Returns:
      The attack. Recorded is the victim's own loss.

    References:
      Agnihotri, Jung, Keuper, CosPGD: An Efficient White-Box Adversarial Attack for Pixel-Wise Prediction
      Tasks, ICML 2024 (untargeted, softmax).
    """
    attack = pgd(num_steps=num_steps, norm=norm, relative_step_size=relative_step_size, start=start)
    return climbing(attack, lambda outputs, targets, look: cosine_cross_entropy(outputs, targets))


def wrong_weight(look: Array, num_steps: int) -> Array:
    """SegPGD's lambda, `t / (2 K)` for look t `[B]` of K steps."""
    return look.astype(jnp.float32) / (2 * num_steps)


def _only_gradient(values: Array) -> Array:
    """Zeros with the gradient of `values`."""
    difference = values - jax.lax.stop_gradient(values)
    return jnp.where(jnp.isfinite(values), difference, 0)
