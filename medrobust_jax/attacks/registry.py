"""Attacks by name, for configs and the command line.

Contents: `ATTACKS`, `create_attack`.

Example:

    attack = create_attack('pgd', num_steps=100, norm='l2')
"""
import inspect
from collections.abc import Callable
from typing import Any

from medrobust_jax.attacks import directions, noise, pgd, stabilized, wrappers
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Attack
from medrobust_jax.losses.classification import margin


def pgd_adam(*, num_steps: int = 20, norm: str = 'linf', relative_step_size: float | None = None,
             start: str = 'ball') -> Attack:
    """PGD with Adam's direction."""
    return pgd.pgd(num_steps=num_steps, norm=norm, relative_step_size=relative_step_size, start=start,
                   direction=directions.adam(norm=norm))


def pgd_margin(*, num_steps: int = 20, norm: str = 'linf', relative_step_size: float | None = None,
               start: str = 'ball') -> Attack:
    """PGD on the classification margin (Carlini and Wagner's loss without its confidence offset)."""
    return wrappers.with_loss(pgd.pgd(num_steps=num_steps, norm=norm, relative_step_size=relative_step_size,
                                      start=start), margin)


ATTACKS: dict[str, Callable[..., Attack]] = {
    'fgsm': pgd.fgsm,
    'ifgsm': pgd.ifgsm,
    'pgd': pgd.pgd,
    'pgd_adam': pgd_adam,
    'pgd_margin': pgd_margin,
    'mi_fgsm': pgd.mi_fgsm,
    'di_fgsm': pgd.di_fgsm,
    'ti_fgsm': pgd.ti_fgsm,
    'smia': stabilized.smia,
    'noise': noise.noise,
}


def create_attack(name: str, **options: Any) -> Attack:
    """The attack called `name`.

    Raises:
      ValueError: for an unknown name or option, suggesting the nearest, or an option out of range.
    """
    if name not in ATTACKS:
        did_you_mean(name, ATTACKS, 'attack')
    known = inspect.signature(ATTACKS[name]).parameters
    for option in options:
        if option not in known:
            did_you_mean(option, known, f"option of attack '{name}'")
    return ATTACKS[name](**options)
