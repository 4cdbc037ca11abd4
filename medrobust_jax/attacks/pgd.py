r"""Projected gradient ascent and its relatives.

    x_0     = clip(x + start noise)
    x_{t+1} = clip_{[0,1]}(x + P_eps(x_t + step * d_t - x)),     d_t = direction(grad_x loss(f(x_t), y))

Contents: `pgd` (the general form), `fgsm`, `ifgsm`, `mi_fgsm`, `di_fgsm`, `ti_fgsm`; for other
attacks `check_options`, `start_noise`, `climb`.

Example:

    attack = pgd(num_steps=20, norm='linf')
    result = run(attack, victim, keys, images, labels, eps=8 / 255)
"""
import jax.numpy as jnp

from medrobust_jax.attacks import directions, looks
from medrobust_jax.attacks.wrappers import averaged_over
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.filters import gaussian_weights
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.transforms import random_resize
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

STARTS = ('clean', 'ball', 'gaussian')


def check_options(*, num_steps: int, norm: str, relative_step_size: float | None, start: str) -> None:
    """Raises ValueError for num_steps < 1, a step size <= 0, or an unknown norm or start."""
    if num_steps < 1:
        raise ValueError(f'num_steps = {num_steps} must be at least 1')
    if relative_step_size is not None and relative_step_size <= 0:
        raise ValueError(f'relative_step_size = {relative_step_size} must be positive')
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')
    if start not in STARTS:
        did_you_mean(start, STARTS, 'start')


def start_noise(keys: Array, images: Array, eps: Array, *, start: str, norm: str) -> Array:
    """The first perturbation `[B, ...]`: none, random in the ball, or .001 N(0, 1) (TRADES, MART)."""
    if start == 'clean':
        return jnp.zeros_like(images)
    if start == 'ball':
        return balls.random_start(keys, images, eps, norm=norm)
    if start == 'gaussian':
        noise = 1e-3 * rng.normal(keys, images.shape[1:]).astype(images.dtype)
        return balls.project(noise, eps, norm=norm)
    did_you_mean(start, STARTS, 'start')


def pgd(*, num_steps: int = 20, norm: str = 'linf', relative_step_size: float | None = None,
        start: str = 'ball', direction: directions.Direction | None = None) -> Attack:
    """Projected gradient ascent.

    Args:
      num_steps: K >= 1, gradient steps.
      norm: 'linf', 'l2' or 'l1'; the ball's radius is the knob 'eps'.
      relative_step_size: step / eps, > 0; default 2.5 / K, so that K steps can cross the ball.
      start: 'ball' (random), 'clean', or 'gaussian'.
      direction: how gradients become directions; default the norm's steepest ascent.

    Returns:
      The attack.

    Raises:
      ValueError: for num_steps < 1, a step size <= 0, or an unknown norm or start.

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    """
    check_options(num_steps=num_steps, norm=norm, relative_step_size=relative_step_size, start=start)
    ratio = 2.5 / num_steps if relative_step_size is None else relative_step_size
    rule = directions.steepest(norm=norm) if direction is None else direction

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        first = balls.to_box(images + start_noise(keys, images, knobs['eps'], start=start, norm=norm))
        return looks.start_state(keys, first, knobs, rule.init(images))

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs, loss, gradient = looks.loss_and_gradient(victim, state, targets)
        state = looks.record(state, loss, victim.acceptable(outputs, targets))
        room = balls.room_of(state.images, ratio * state.knobs['eps'])
        move, inner = rule.update(gradient, state.inner, state.step, room)
        return looks.move_to(state, climb(images, state, move, ratio=ratio, norm=norm), inner)

    return Attack(init, step, num_steps)


def climb(images: Array, state: AttackState, direction: Array, *, ratio: float, norm: str) -> Array:
    """One projected step of size `ratio * eps` along `direction`, inside the ball around `images` and the box."""
    eps = state.knobs['eps']
    moved = state.images + per_example(ratio * eps, images) * direction
    return balls.to_box(images + balls.project(moved - images, eps, norm=norm))


def fgsm(*, norm: str = 'linf') -> Attack:
    """The fast gradient sign method: one step of size eps from the clean image.

    References: Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015.
    """
    return pgd(num_steps=1, norm=norm, relative_step_size=1.0, start='clean')


def ifgsm(*, num_steps: int = 10, norm: str = 'linf', relative_step_size: float | None = None) -> Attack:
    """Iterated FGSM (BIM): steps of eps / K from the clean image.

    References: Kurakin et al., Adversarial Examples in the Physical World, 2017.
    """
    ratio = 1 / max(num_steps, 1) if relative_step_size is None else relative_step_size
    return pgd(num_steps=num_steps, norm=norm, relative_step_size=ratio, start='clean')


def mi_fgsm(*, num_steps: int = 10, norm: str = 'linf', decay: float = 1.0,
            relative_step_size: float | None = None) -> Attack:
    """Iterated FGSM with momentum; see `directions.momentum`."""
    ratio = 1 / max(num_steps, 1) if relative_step_size is None else relative_step_size
    return pgd(num_steps=num_steps, norm=norm, relative_step_size=ratio, start='clean',
               direction=directions.momentum(norm=norm, decay=decay))


def di_fgsm(*, num_steps: int = 10, norm: str = 'linf', decay: float = 1.0, probability: float = 0.5,
            smallest: float = 0.85, relative_step_size: float | None = None) -> Attack:
    """MI-FGSM with input diversity: gradients through randomly resized and padded images.

    Args:
      num_steps: K >= 1.
      norm: 'linf', 'l2' or 'l1'.
      decay: momentum; 0 gives DI-FGSM without momentum.
      probability: how often the input is transformed (the paper's .5).
      smallest: the smallest scale, in (0, 1].
      relative_step_size: step / eps; default 1 / K.

    Differs from the paper in: images shrink to `smallest`..1 of their size and are padded back,
    instead of growing from 299 to at most 330 pixels, so that any network takes them.

    References: Xie et al., Improving Transferability of Adversarial Examples with Input Diversity,
    CVPR 2019.
    """
    attack = mi_fgsm(num_steps=num_steps, norm=norm, decay=decay, relative_step_size=relative_step_size)
    return averaged_over(attack, random_resize(probability=probability, smallest=smallest), num_samples=1)


def ti_fgsm(*, num_steps: int = 10, norm: str = 'linf', decay: float = 1.0, kernel_size: int = 7,
            sigma: float = 3.0, relative_step_size: float | None = None) -> Attack:
    """MI-FGSM on smoothed gradients (translation invariance).

    Args:
      num_steps: K >= 1.
      norm: 'linf', 'l2' or 'l1'.
      decay: momentum.
      kernel_size: taps of the Gaussian, odd. The paper's is 15 at 299 pixels.
      sigma: its standard deviation in pixels; the paper's is 3.
      relative_step_size: step / eps; default 1 / K.

    References: Dong et al., CVPR 2019.
    """
    ratio = 1 / max(num_steps, 1) if relative_step_size is None else relative_step_size
    rule = directions.smoothed(directions.momentum(norm=norm, decay=decay),
                               gaussian_weights(size=kernel_size, sigma=sigma))
    return pgd(num_steps=num_steps, norm=norm, relative_step_size=ratio, start='clean', direction=rule)
