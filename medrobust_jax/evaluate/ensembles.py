"""Ensembles of attacks, judged as one: AutoAttack, and one for tasks that AutoAttack is not defined for.

Contents: `autoattack`, `medical_ensemble`, `segmentation_ensemble`.

Example:

    ensemble = autoattack(num_classes=10, norm='linf')          # APGD-CE, APGD-T, FAB-T, Square
    ensemble = medical_ensemble(num_classes=2)                  # its own name, because it is another measure
"""
from collections.abc import Callable

from medrobust_jax.attacks.apgd import apgd, apgd_targeted
from medrobust_jax.attacks.fab import fab
from medrobust_jax.attacks.sea import sea
from medrobust_jax.attacks.square import square
from medrobust_jax.attacks.wrappers import averaged_over, with_loss
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.transforms import identity
from medrobust_jax.core.types import Array, Attack, Outputs, Targets
from medrobust_jax.evaluate.suite import Ensemble, Threat

VERSIONS = ('standard', 'plus', 'rand', 'custom')
MEMBERS = ('apgd_ce', 'apgd_dlr', 'apgd_t', 'fab', 'fab_t', 'square')
_OF_VERSION = {'standard': ('apgd_ce', 'apgd_t', 'fab_t', 'square'),
               'plus': ('apgd_ce', 'apgd_dlr', 'fab', 'square', 'apgd_t', 'fab_t'),
               'rand': ('apgd_ce', 'apgd_dlr')}


def autoattack(*, num_classes: int, norm: str = 'linf', version: str = 'standard',
               members: tuple[str, ...] = (), num_targets: int = 9, num_restarts: int | None = None,
               num_queries: int = 5000, num_steps: int = 100, num_samples: int = 20) -> Ensemble:
    """AutoAttack, in the order and with the constants of its authors' code.

    standard: APGD-CE (L1: 5 restarts), targeted APGD-DLR on 9 targets (L1: 5), FAB-T on 9, Square with
    5000 queries. plus: APGD-CE, APGD-DLR and FAB with 5 restarts, Square, APGD-T, FAB-T. rand, for
    randomized models: APGD-CE and APGD-DLR on gradients averaged over 20 passes. custom: one restart each.

    Args:
      num_classes: C. Targeted DLR needs 4; with 4 to 9 classes the targets are the C - 1 that
        exist, which the original would fail on, and the record says so.
      norm: 'linf', 'l2' or 'l1'.
      version: 'standard', 'plus', 'rand', or 'custom' with `members`.
      members: for 'custom', some of 'apgd_ce', 'apgd_dlr', 'apgd_t', 'fab', 'fab_t', 'square'.
      num_targets: at most so many; 9 in the original.
      num_restarts: of the untargeted gradient attacks and FAB; None for the original's: 5 for 'plus' and
        for APGD-CE in 'l1', else 1.
      num_queries: Square's.
      num_steps: of APGD and FAB; 100 in the original. Another value is no longer AutoAttack.
      num_samples: passes that 'rand' averages over.

    Returns:
      The ensemble.

    Raises:
      ValueError: for fewer than four classes, where `medical_ensemble` is the measure; an unknown
        version or member.

    Differs from the original in: every image draws for itself (see `square`, `fab`); an image
      that falls at one radius is not attacked at larger ones; 'rand' judges one pass, not the last of 20.

    References:
      Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
      Parameter-free Attacks, ICML 2020; Croce and Hein, Mind the Box: L1-APGD, ICML 2021.
    """
    if num_classes < 4:
        raise ValueError(f'AutoAttack is not defined for {num_classes} classes: its targeted DLR loss needs four '
                         f"logits. Use the attack 'medical_ensemble', which goes by another name for that reason")
    if version not in VERSIONS:
        did_you_mean(version, VERSIONS, 'version of AutoAttack')
    if members and version != 'custom':
        raise ValueError(f"members are for version 'custom'; version {version!r} has its own")
    chosen = _OF_VERSION.get(version, tuple(members))
    if not chosen:
        raise ValueError(f"version 'custom' needs members, some of {', '.join(MEMBERS)}")
    targets = min(num_targets, num_classes - 1)
    several = 5 if num_restarts is None else num_restarts
    restarts = several if version == 'plus' or num_restarts is not None else 1
    makers = {
        'apgd_ce': lambda: _threat('apgd_ce', apgd(num_steps=num_steps, norm=norm), norm,
                                   restarts=several if norm == 'l1' else restarts),
        'apgd_dlr': lambda: _threat('apgd_dlr', apgd(num_steps=num_steps, norm=norm, loss='dlr'), norm,
                                    restarts=restarts),
        'apgd_t': lambda: _threat('apgd_t', apgd_targeted(num_steps=num_steps, norm=norm), norm,
                                  targets=min(targets, 5) if norm == 'l1' else targets),
        'fab': lambda: _threat('fab', fab(num_steps=num_steps, norm=norm), norm, restarts=restarts),
        'fab_t': lambda: _threat('fab_t', fab(num_steps=num_steps, norm=norm, targeted=True), norm,
                                 targets=targets),
        'square': lambda: _threat('square', square(num_steps=num_queries, norm=norm), norm),
    }
    threats = []
    for name in chosen:
        if name not in makers:
            did_you_mean(name, MEMBERS, 'member of AutoAttack')
        threat = makers[name]()
        if version == 'rand':
            threat = threat._replace(attack=averaged_over(threat.attack, identity, num_samples=num_samples))
        threats.append(threat)
    exact = (num_targets, num_queries, num_steps) == (9, 5000, 100) and num_restarts is None and (
        version == 'standard' or (version != 'custom' and norm != 'l1' and num_samples == 20))
    title = f'AutoAttack {version}' if exact else 'AutoAttack, own settings'
    if exact and num_classes < 10 and version != 'rand':
        title += f', with the {num_classes - 1} targets that {num_classes} classes have'
    return Ensemble(f'autoattack_{version}', tuple(threats), norm, {'measure': title, 'version': version})


def medical_ensemble(*, num_classes: int, task: str = 'classification', norm: str = 'linf', num_targets: int = 9,
                     num_restarts: int = 1, num_queries: int = 5000, num_steps: int = 100,
                     margin: Callable[[Outputs, Targets], Array] | None = None) -> Ensemble:
    """An ensemble for medical tasks: few classes, grades, any task with a loss and a criterion.

    For classification: APGD-CE; targeted APGD on DLR (four classes and more) or on the margin z_t - z_y (two
    and three), on min(C - 1, 9) targets; FAB-T on as many; Square on the margin. For other tasks, which have
    no logit per class: APGD on the task's loss, from the ball and from the clean image, and Square on the
    task's loss; where the task has a margin (multi-label: that of the finding which decides), APGD and Square
    on the margin in the place of the last two. Not AutoAttack, and never called that: numbers do not
    compare with it.

    Args:
      num_classes: C >= 2; the task's number of outputs.
      task: 'classification', or another task's name.
      norm: 'linf', 'l2' or 'l1'.
      num_targets: at most so many.
      num_restarts: of the untargeted APGD.
      num_queries: Square's.
      num_steps: of APGD and FAB.
      margin: `Task.margin`; classification has its own.
    """
    first = {'num_steps': num_steps, 'norm': norm}
    if task != 'classification':
        blind = square(num_steps=num_queries, norm=norm, loss='task')
        members = (
            _threat('apgd', apgd(loss='task', **first), norm, restarts=num_restarts),
            _threat('apgd_clean', apgd(loss='task', start='clean', **first), norm) if margin is None else
            _threat('apgd_margin', apgd(loss=margin, **first), norm),
            _threat('square', blind if margin is None else with_loss(blind, margin), norm))
    else:
        if num_classes < 2:
            raise ValueError(f'classification needs two classes at least, not {num_classes}')
        targets, loss = min(num_targets, num_classes - 1), 'dlr' if num_classes >= 4 else 'margin'
        members = (
            _threat('apgd_ce', apgd(**first), norm, restarts=num_restarts),
            _threat('apgd_t', apgd_targeted(loss=loss, **first), norm, targets=targets),
            _threat('fab_t', fab(targeted=True, **first), norm, targets=targets),
            _threat('square', square(num_steps=num_queries, norm=norm), norm))
    return Ensemble('medical_ensemble', members, norm, {'measure': f'medical ensemble for {task}'})


def segmentation_ensemble(*, norm: str = 'linf', num_steps: int = 300) -> Ensemble:
    """SEA: the four runs of `attacks.sea`, each on what those before it left standing.

    Args:
      norm: 'linf' or 'l2'.
      num_steps: of each run; 300 in the original, with which the record calls it SEA.
    """
    members = tuple(Threat(name, attack, norm, options={'attack': name})
                    for name, attack in sea(norm=norm, num_steps=num_steps).items())
    title = 'SEA' if num_steps == 300 else 'SEA, own settings'
    return Ensemble('sea', members, norm, {'measure': title})


def _threat(name: str, attack: Attack, norm: str, *, restarts: int = 1, targets: int = 1) -> Threat:
    return Threat(name, attack, norm, restarts, {'attack': name}, targets)
