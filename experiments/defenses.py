"""From a config to its defense: the one file that knows the names of the defenses.

Contents: `make_defense`, `needs_helper`. `experiments.build.build_defense` is what others call.
"""
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
from ml_collections import ConfigDict

from configs.defenses import DEFENSES
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.registry import create_attack
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array, Attack, Defense, Outputs, Targets, Task
from medrobust_jax.defenses import radius
from medrobust_jax.defenses.adaptive_margin import adaptive_margin
from medrobust_jax.defenses.awp import with_weight_perturbation
from medrobust_jax.defenses.free_at import free_at
from medrobust_jax.defenses.gairat import gairat
from medrobust_jax.defenses.guided_complement import guided_complement
from medrobust_jax.defenses.hat import hat
from medrobust_jax.defenses.mart import mart
from medrobust_jax.defenses.max_margin import max_margin
from medrobust_jax.defenses.mpadvt import mpadvt
from medrobust_jax.defenses.pgd_at import pgd_at
from medrobust_jax.defenses.robust_self_training import robust_self_training
from medrobust_jax.defenses.ssat import ssat
from medrobust_jax.defenses.standard import natural
from medrobust_jax.defenses.temporal_ensembling import temporal_ensembling
from medrobust_jax.defenses.trades import trades
from medrobust_jax.defenses.two_attacks import two_attacks
from medrobust_jax.defenses.unsupervised_at import unsupervised_at
from medrobust_jax.losses.shape import mask_loss, point_loss

if TYPE_CHECKING:
    from experiments.build import Durations

ATTACK_LOSSES = {'shape_regression': point_loss, 'shape_mask': mask_loss}  # the terms of the training loss [code]
Helper = Callable[[Array], Outputs]


def make_defense(config: ConfigDict, task: Task, durations: 'Durations', *,
                 helper: Helper | None = None) -> Defense:
    """The training objective.

    Args:
      config: as in configs/base.py; its fields are those of its defense (configs/defenses.py).
      task: what is trained for.
      durations: turns epochs and shares of the training into steps.
      helper: the naturally trained net of those that need one, `images -> outputs`.

    Raises:
      ValueError: for an unknown name, or fields of another defense.
    """
    chosen = config.defense
    if chosen.name not in DEFENSES:
        did_you_mean(chosen.name, DEFENSES, 'config.defense.name')
    if chosen.name == 'natural':
        return natural(task)
    defense = _MAKERS[chosen.name](chosen, task, durations, helper)
    return with_weight_perturbation(defense, gamma=chosen.awp_gamma,
                                    start_step=durations.steps(chosen.awp_start_epoch))


def needs_helper(chosen: ConfigDict) -> bool:
    """Whether `config.defense` asks for the naturally trained net of another run."""
    return chosen.name in ('hat', 'rst') or (chosen.name == 'uat' and chosen.mode != 'online')


def _attack(chosen: ConfigDict) -> Attack:
    return create_attack(chosen.attack.name, **chosen.attack.options.to_dict())


def _shared(chosen: ConfigDict, durations: 'Durations', *, warms_up: bool = True) -> dict:
    """Radius and BatchNorm mode, as most defenses take them."""
    if chosen.eps_low is None:
        eps = radius.constant(chosen.eps)
    else:
        eps = radius.uniform_per_batch(chosen.eps_low, chosen.eps)
    return {'radius': radius.warmed_up(eps, steps=durations.steps(chosen.warmup_epochs) if warms_up else 0),
            'attack_batch_norm': chosen.attack_batch_norm}


def _pgd_at(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    return pgd_at(task, _attack(chosen), clean_weight=chosen.clean_weight, **_shared(chosen, durations))


def _trades(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    return trades(task, _attack(chosen), beta=chosen.beta, **_shared(chosen, durations))


def _mart(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    return mart(task, _attack(chosen), beta=chosen.beta, **_shared(chosen, durations))


def _gairat(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    return gairat(task, _attack(chosen), burn_in_steps=round(chosen.burn_in * durations.total), bias=chosen.bias,
                  **_shared(chosen, durations))


def _temporal_ensembling(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    return temporal_ensembling(task, _attack(chosen), total_steps=durations.total, weight=chosen.te_weight,
                               decay=chosen.te_decay, ramp=tuple(chosen.te_ramp),
                               memory_limit=1e9 * chosen.te_memory_gb, **_shared(chosen, durations))


def _hat(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    assert helper is not None
    return hat(task, _attack(chosen), helper, beta=chosen.beta, gamma=chosen.helper_weight,
               reach=chosen.helper_reach, **_shared(chosen, durations))


def _mpadvt(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    low, high = chosen.mp_eps
    return mpadvt(task, eps_low=low, eps_high=high, step_size=chosen.mp_step_size,
                  probability=chosen.mp_probability, l1_weight=chosen.l1_weight, norm=chosen.attack.options.norm,
                  attack_batch_norm=chosen.attack_batch_norm)


def _fast_at(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    attack = pgd(num_steps=1, norm=chosen.attack.options.norm, relative_step_size=chosen.fast_step_size)
    return pgd_at(task, attack, clean_weight=chosen.clean_weight, **_shared(chosen, durations))


def _adaptive_margin(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    attack = chosen.attack.options
    epochs = math.ceil(durations.total / durations.steps_per_epoch)
    return adaptive_margin(
        task, delta=chosen.delta, num_steps=attack.num_steps, alpha=attack.relative_step_size * attack.num_steps,
        beta=chosen.adversarial_share, e_max=math.inf if chosen.e_max is None else chosen.e_max,
        min_margin=chosen.min_margin, norm=attack.norm, step_size=chosen.step_size,
        num_bisections=chosen.get('num_bisections', 0), delta_decay=chosen.get('delta_decay', 1.0),
        num_epochs=epochs, attack_batch_norm=chosen.attack_batch_norm)


def _max_margin(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    attack = chosen.attack.options
    return max_margin(task, d_max=chosen.eps, num_steps=attack.num_steps,
                      relative_step_size=attack.relative_step_size, norm=attack.norm,
                      clean_share=chosen.clean_share, num_bisections=chosen.num_bisections,
                      attack_batch_norm=chosen.attack_batch_norm)


def _two_attacks(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    known: dict[str, Callable[[Outputs, Targets], jax.Array]] = {'task': task.loss, **ATTACK_LOSSES}
    for name in chosen.attack_losses:
        if name not in known:
            did_you_mean(name, known, 'attack loss in config.defense.attack_losses')
    ramp = radius.warmed_up(radius.constant(chosen.eps), steps=round(chosen.ramp * durations.total))
    return two_attacks(task, tuple(known[name] for name in chosen.attack_losses), radius=ramp,
                       num_steps=chosen.attack.options.num_steps, step_size=chosen.step_size,
                       norm=chosen.attack.options.norm, start=chosen.attack.options.start,
                       attack_batch_norm=chosen.attack_batch_norm)


def _fgsm_at(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    return pgd_at(task, _attack(chosen), clean_weight=chosen.clean_weight,
                  **_shared(chosen, durations, warms_up=False))


def _free_at(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    return free_at(task, batch_size=chosen.batch_size, relative_step_size=chosen.free_step_size,
                   norm=chosen.attack.options.norm, **_shared(chosen, durations))


def _guided_complement(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    return guided_complement(task, alpha=chosen.gce_alpha)


def _ssat(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    return ssat(task, _attack(chosen), weight=chosen.unlabeled_weight, labeled_weight=chosen.labeled_weight,
                confidence=chosen.confidence, teacher_decay=chosen.teacher_decay,
                **_shared(chosen, durations, warms_up=False))


def _robust_self_training(chosen: ConfigDict, task: Task, durations: 'Durations',
                          helper: Helper | None) -> Defense:
    assert helper is not None
    return robust_self_training(task, _attack(chosen), helper, beta=chosen.beta, pseudo_share=chosen.pseudo_share,
                                **_shared(chosen, durations))


def _unsupervised_at(chosen: ConfigDict, task: Task, durations: 'Durations', helper: Helper | None) -> Defense:
    return unsupervised_at(task, _attack(chosen), mode=chosen.mode, weight=chosen.unlabeled_weight, helper=helper,
                           **_shared(chosen, durations))


_MAKERS: dict[str, Callable[[ConfigDict, Task, 'Durations', Helper | None], Defense]] = {
    'pgd_at': _pgd_at, 'trades': _trades, 'mart': _mart, 'gairat': _gairat, 'te': _temporal_ensembling,
    'hat': _hat, 'mpadvt': _mpadvt, 'fast_at': _fast_at, 'amat': _adaptive_margin, 'ima': _adaptive_margin,
    'ame': _adaptive_margin, 'mma': _max_margin, 'two_attacks': _two_attacks, 'fgsm_at': _fgsm_at,
    'free_at': _free_at, 'gce': _guided_complement, 'ssat': _ssat, 'rst': _robust_self_training,
    'uat': _unsupervised_at,
}
