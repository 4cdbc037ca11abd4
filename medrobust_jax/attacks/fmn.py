r"""FMN, the fast minimum-norm attack in L1, L2 and Linf.

    delta_{t+1} = clip_{[0,1]}(x + P_{r_t}(delta_t + alpha_t g_t / ||g_t||_2)) - x,
    g_t = grad_x m(x + delta_t),      m = the margin, > 0 where the prediction is wrong
    r_t = max(||delta_t||_p + |m| / ||g_t||_q, (1 + gamma_t) r_{t-1})   until an image has fooled
        = min((1 - gamma_t) r_{t-1}, nearest distance)                  if x + delta_t fools
        = (1 + gamma_t) r_{t-1}                                         otherwise

with 1/p + 1/q = 1. The radius jumps to the boundary of the linearized margin, and once behind the
true boundary closes in on it from both sides.

Contents: `fmn`.

Example:

    result = run(fmn(norm='linf'), victim, keys, images, labels, eps=jnp.inf)
    distances = -result.loss                  # of the images that fool: ~result.acceptable
"""
import jax.numpy as jnp

from medrobust_jax.attacks import looks, nearest
from medrobust_jax.attacks.wrappers import with_loss
from medrobust_jax.core import balls
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim
from medrobust_jax.losses.classification import margin

_DUAL = {'linf': 'l1', 'l2': 'l2', 'l1': 'linf'}


def fmn(*, num_steps: int = 100, norm: str = 'linf', first_step_size: float = 1.0,
        last_step_size: float | None = None, first_gamma: float = 0.05, last_gamma: float = 0.001,
        insist: bool = True) -> Attack:
    """The fast minimum-norm attack, for single-label classification.

    Args:
      num_steps: K >= 1, gradients.
      norm: 'linf', 'l2' or 'l1'.
      first_step_size: alpha_0 > 0, the L2 length of the first step in units of [0, 1] pixels, in
        every norm; 1 [code].
      last_step_size: what alpha_t anneals to along a cosine; default `first_step_size / 100` [code].
      first_gamma: in (0, 1), how fast the radius changes at first; .05 [code].
      last_gamma: what it anneals to; .001 [code].
      insist: whether the radius grows by gamma_t at least from step to step until an image has
        fooled, as it does afterwards; the paper's has no such floor.

    Returns:
      The attack. K forward and backward passes; the knob 'eps' is the largest distance that counts,
      infinite for the minimum-norm result. The recorded loss is minus the distance where the image
      fools. It starts at the clean image and draws nothing unless the knob 'restart' is above 0.

    Raises:
      ValueError: for an option out of range or an unknown norm.

    Differs from the paper in: no L0; no start from a given fooling image; `insist`, without which
    iterates settle on the boundary of a locally linear model, where rounding decides whether any
    of them ever fools, or, in L1, on a few pixels that have met the end of the box. As in the
    authors' code, and not in the paper, the radius never exceeds the distance to the farthest
    corner of the box.

    References:
      Pintor et al., Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints,
      NeurIPS 2021, algorithm 1.
    """
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')
    final = first_step_size / 100 if last_step_size is None else last_step_size
    if num_steps < 1 or min(first_step_size, final) <= 0:
        raise ValueError(f'fmn needs num_steps >= 1 and step sizes > 0, '
                         f'not {num_steps}, {first_step_size}, {final}')
    if not (0 < first_gamma < 1 and 0 < last_gamma < 1):
        raise ValueError(f'fmn needs first_gamma and last_gamma in (0, 1), not {first_gamma}, {last_gamma}')

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        unknown = jnp.full(len(images), jnp.inf, images.dtype)
        return nearest.begin(keys, images, knobs, {'radius': unknown, 'nearest': unknown}, norm=norm)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs, loss, gradient = looks.loss_and_gradient(victim, state, targets)
        wrong = ~victim.acceptable(outputs, targets)
        state, distance = nearest.record(state, images, loss, wrong, norm=norm)
        closest = jnp.where(wrong, jnp.minimum(distance, state.inner['nearest']), state.inner['nearest'])
        gamma = nearest.annealed(first_gamma, last_gamma, state.step, num_steps, images.dtype)
        jump = distance + jnp.abs(loss).astype(images.dtype) / balls.norm_of(gradient, norm=_DUAL[norm])
        radius = state.inner['radius']
        larger = radius * (1 + gamma)
        if insist:
            jump = jnp.where(jnp.isfinite(radius), jnp.fmax(jump, larger), jump)
        radius = jnp.where(wrong, jnp.minimum(radius * (1 - gamma), closest),
                           jnp.where(jnp.isfinite(closest), larger, jump))
        # fmin: the limit also stands in where margin and gradient vanish together.
        radius = jnp.fmin(radius, nearest.farthest(images, norm=norm))
        length = nearest.annealed(first_step_size, final, state.step, num_steps, images.dtype)
        moved = state.images - images + per_example(length, images) * balls.ascent_direction(gradient, norm='l2')
        moved = balls.to_box(images + balls.project(moved, radius, norm=norm))
        state = looks.move_to(state, moved, {'radius': radius, 'nearest': closest})
        return nearest.finish(state, state.step >= num_steps)

    return with_loss(Attack(init, step, num_steps), margin)
