r"""Medical corruptions as attacks: the worst of n draws, or the worst bias field found by gradients.

The knob 'eps' is a severity in [0, 5] (`core.corruptions`), not the radius of a ball: the norm of
these attacks is called 'severity'. An image corrupted at severity 2 is none of severity 3; a grid of
severities that counts an image as fallen from its first fall on measures the worst case up to each.

Contents: `corruption`, `adversarial_bias_field`, `NORM`.

Example:

    attack = corruption('motion_blur', num_draws=20)
    result = run(attack, victim, keys, images, labels, eps=3.0)
"""
import jax
import jax.numpy as jnp

from medrobust_jax.attacks import looks
from medrobust_jax.attacks.sampling import worst_of
from medrobust_jax.core import degradations, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.corruptions import BIAS_ORDER, CORRUPTIONS, DETERMINISTIC, level_of
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

NORM = 'severity'


def corruption(name: str, *, num_draws: int = 10) -> Attack:
    """The worst of `num_draws` random instances of a corruption, at severity eps.

    Args:
      name: one of `core.corruptions.CORRUPTIONS`.
      num_draws: n >= 1, one forward pass each. Corruptions that draw nothing make one look whatever n.

    Raises:
      ValueError: for an unknown name or num_draws < 1.

    References:
      Worst of k random draws as an adversary: Engstrom et al., Exploring the Landscape of Spatial
      Robustness, ICML 2019.
    """
    if name not in CORRUPTIONS:
        did_you_mean(name, CORRUPTIONS, 'corruption')

    def draw(keys: Array, images: Array, eps: Array, number: Array) -> Array:
        return CORRUPTIONS[name](keys, images, eps)

    return worst_of(draw, num_draws=min(num_draws, 1) if name in DETERMINISTIC else num_draws)


def adversarial_bias_field(*, num_steps: int = 20, relative_step_size: float | None = None,
                           order: int = BIAS_ORDER) -> Attack:
    r"""The smooth gain that hurts most, by signed gradient ascent on its coefficients.

        x(c)    = clip_{[0,1]}(s x exp(a f_c / max|f_c|)),    f_c = sum_p c_p P_p,    s: the maximum stays
        c_{t+1} = clip_{[-1,1]}(c_t + step * sign(grad_c loss(f(x(c_t)), y))),    c_0 ~ U(-1, 1)

    with Legendre polynomials P_p of total degree 1 ... `order`, and a the log gain of 'bias_field' at
    severity eps. The start is a draw of that corruption; the box around c only keeps the steps to scale.

    Args:
      num_steps: K >= 1, one forward and one backward pass each.
      relative_step_size: the step, in units of the coefficients, > 0; default 2.5 / K [ours].
      order: the polynomial's largest total degree, >= 1.

    Raises:
      ValueError: for num_steps < 1, a step size <= 0 or an order < 1.

    References:
      Tian et al., Bias Field Poses a Threat to DNN-based X-Ray Recognition, ICME 2021, arXiv
      2009.09247; Chen et al., Realistic Adversarial Data Augmentation for MR Image Segmentation,
      MICCAI 2020.

    Differs from the papers in: the field is a low polynomial of bounded log gain; the first tunes a
    pixelwise field under smoothness penalties, the second the control points of a spline.
    """
    if num_steps < 1 or order < 1:
        raise ValueError(f'adversarial_bias_field needs num_steps and order >= 1, not {num_steps} and {order}')
    if relative_step_size is not None and relative_step_size <= 0:
        raise ValueError(f'relative_step_size = {relative_step_size} must be positive')
    length = 2.5 / num_steps if relative_step_size is None else relative_step_size

    def apply(images: Array, coefficients: Array, severity: Array) -> Array:
        changed = degradations.bias_field(images, coefficients, level_of('bias_field', severity), order=order)
        return jnp.where(per_example(severity > 0, images), jnp.clip(changed, 0, 1), images)

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        count = len(degradations.bias_terms(images.ndim - 2, order))
        first = rng.uniform(keys, (count,), -1, 1).astype(images.dtype)
        return looks.start_state(keys, apply(images, first, knobs['eps']), knobs, first)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs, loss, gradient = looks.loss_and_gradient(victim, state, targets)
        _, pull_back = jax.vjp(lambda c: apply(images, c, state.knobs['eps']), state.inner)
        (slope,) = pull_back(gradient)
        moved = jnp.clip(state.inner + length * jnp.sign(jnp.nan_to_num(slope)), -1, 1).astype(images.dtype)
        state = looks.record(state, loss, victim.acceptable(outputs, targets))
        return looks.move_to(state, apply(images, moved, state.knobs['eps']), moved)

    return Attack(init, step, num_steps)
