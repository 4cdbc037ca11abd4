"""Attacks by name, for configs and the command line.

Contents: `ATTACKS`, `create_attack`, `norm_of_attack`, and what an evaluation must know: `MINIMUM_NORM`,
`TARGETED`, `NEEDS_LOGITS`, `NEEDS_PIXEL_LOGITS`, `NEEDS_SHAPES`, `TAKES_TASK_LOSS`, `BLACK_BOX`.

Example:

    attack = create_attack('pgd', num_steps=100, norm='l2')
"""
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from medrobust_jax.attacks import (
    apgd,
    boundary,
    carlini,
    corruptions,
    ddn,
    deepfool,
    dense,
    directions,
    estimation,
    fab,
    fmn,
    hopskipjump,
    noise,
    ood,
    patch,
    pgd,
    sea,
    simba,
    spatial,
    square,
    stabilized,
    wrappers,
)
from medrobust_jax.core.checks import check_options, did_you_mean
from medrobust_jax.core.corruptions import CORRUPTIONS
from medrobust_jax.core.types import Array, Attack, Outputs, Targets
from medrobust_jax.losses.classification import margin
from medrobust_jax.losses.shape import shape_mask_attack_loss, shape_regression_attack_loss


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


def _adamax_on_shapes(climbed: Callable[[Outputs, Targets], Array], /, *, num_steps: int = 100, norm: str = 'linf',
                      relative_step_size: float | None = .2, start: str = 'ball') -> Attack:
    """The shape paper's attacks inside the distribution, one per output of the network."""
    return wrappers.with_loss(ood.pgd_adamax(num_steps=num_steps, norm=norm, relative_step_size=relative_step_size,
                                             start=start), climbed)


ATTACKS: dict[str, Callable[..., Attack]] = {
    'fgsm': pgd.fgsm,
    'ifgsm': pgd.ifgsm,
    'pgd': pgd.pgd,
    'pgd_adam': pgd_adam,
    'pgd_margin': pgd_margin,
    'mi_fgsm': pgd.mi_fgsm,
    'di_fgsm': pgd.di_fgsm,
    'ti_fgsm': pgd.ti_fgsm,
    'pgd_adamax': ood.pgd_adamax,
    'pgd_adamax_points': partial(_adamax_on_shapes, shape_regression_attack_loss),
    'pgd_adamax_mask': partial(_adamax_on_shapes, shape_mask_attack_loss),
    'smia': stabilized.smia,
    'segpgd': dense.segpgd,
    'cospgd': dense.cospgd,
    **{f'sea_{name}': partial(sea.sea_run, name) for name in sea.SEA_LOSSES},
    'noise': noise.noise,
    'apgd': apgd.apgd,
    'apgd_targeted': apgd.apgd_targeted,
    'fab': fab.fab,
    'fab_targeted': partial(fab.fab, targeted=True),
    'square': square.square,
    'cw_linf': carlini.cw_linf,
    'cw_l2': carlini.cw_l2,
    'ddn': ddn.ddn,
    'fmn': fmn.fmn,
    'deepfool': deepfool.deepfool,
    'simba': simba.simba,
    'nes': estimation.nes,
    'spsa': estimation.spsa,
    'hopskipjump': hopskipjump.hopskipjump,
    'boundary': boundary.boundary_attack,
    'spatial': spatial.spatial,
    'spatial_grid': spatial.spatial_grid,
    'patch': patch.patch,
    'adversarial_bias_field': corruptions.adversarial_bias_field,
    **{f'corruption_{name}': partial(corruptions.corruption, name) for name in CORRUPTIONS},
}
# Attacks that look for the nearest fooling image whatever the radius: one run serves a whole grid.
MINIMUM_NORM = frozenset({'fab', 'fab_targeted', 'cw_l2', 'ddn', 'fmn', 'deepfool', 'hopskipjump', 'boundary'})
# Attacks that aim at the class of the knob 'target_rank'.
TARGETED = frozenset({'apgd_targeted', 'fab_targeted'})
# Attacks that read one logit per class.
NEEDS_LOGITS = frozenset({'pgd_margin', 'apgd_targeted', 'fab', 'fab_targeted', 'cw_linf', 'cw_l2', 'fmn',
                          'deepfool', 'simba'})
# Attacks that read one logit per class at every pixel.
NEEDS_PIXEL_LOGITS = frozenset({'segpgd', 'cospgd', *(f'sea_{name}' for name in sea.SEA_LOSSES)})
# Attacks that read the points and the mask of a shape.
NEEDS_SHAPES = frozenset({'pgd_adamax_points', 'pgd_adamax_mask'})
# Attacks that move what is seen, and with it the places of masks, points and boxes.
MOVES_PIXELS = frozenset({'spatial', 'spatial_grid'})
# Attacks whose recorded loss, the pixel error, is not what they climb.
CLIMBS_ANOTHER_LOSS = frozenset(f'sea_{name}' for name in sea.SEA_LOSSES)
# Attacks whose default loss reads one logit per class, and which take loss='task' instead.
TAKES_TASK_LOSS = frozenset({'apgd', 'square'})
# Attacks that ask for outputs or decisions only: they should not beat those that have the gradient.
BLACK_BOX = frozenset({'noise', 'square', 'simba', 'nes', 'spsa', 'hopskipjump', 'boundary'})
_FIXED_NORM = {'cw_l2': 'l2', 'cw_linf': 'linf', 'ddn': 'l2', 'boundary': 'l2', 'patch': patch.NORM,
               'spatial': spatial.NORM, 'spatial_grid': spatial.NORM, 'adversarial_bias_field': corruptions.NORM,
               **{f'corruption_{name}': corruptions.NORM for name in CORRUPTIONS}}


def norm_of_attack(name: str, options: Mapping[str, Any]) -> str:
    """What eps measures for the attack called `name`: a norm, or 'severity', 'spatial', 'patch', 'sigma'."""
    if name == 'noise' and options.get('distribution') == 'gaussian':
        return 'sigma'
    if name in _FIXED_NORM:
        return _FIXED_NORM[name]
    return options.get('norm', inspect.signature(ATTACKS[name]).parameters['norm'].default)


def create_attack(name: str, /, **options: Any) -> Attack:
    """The attack called `name`.

    Raises:
      ValueError: for an unknown name or option, suggesting the nearest, or an option out of range.
    """
    if name not in ATTACKS:
        did_you_mean(name, ATTACKS, 'attack')
    check_options(options, inspect.signature(ATTACKS[name]).parameters, f"option of attack '{name}'")
    return ATTACKS[name](**options)
