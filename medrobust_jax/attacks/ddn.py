r"""DDN: an L2 attack that decouples the direction of the perturbation from its norm.

    d_t     = delta_t + alpha_t g_t / ||g_t||_2,        g_t = grad_x loss(f(x + delta_t), y)
    r_{t+1} = (1 - gamma) r_t  if x + delta_t fools,  else (1 + gamma) r_t
    delta_{t+1} = clip_{[0,1]}(x + r_{t+1} d_t / ||d_t||_2) - x

The perturbation stays on a sphere that shrinks while it fools and grows while it does not; the
nearest fooling image is kept. Needs a loss and a criterion, so it runs on every task.

Contents: `ddn`.

Example:

    result = run(ddn(num_steps=100), victim, keys, images, labels, eps=jnp.inf)
    distances = -result.loss                  # of the images that fool: ~result.acceptable
"""
import jax.numpy as jnp

from medrobust_jax.attacks import looks, nearest
from medrobust_jax.core import balls, rng
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

_DIRECTIONS = 0xDD4  # keeps the keys of random directions apart from those of passes and restarts


def ddn(*, num_steps: int = 100, initial_norm: float = 1.0, gamma: float = 0.05, first_step_size: float = 1.0,
        last_step_size: float = 0.01) -> Attack:
    """Decoupled direction and norm, L2.

    Args:
      num_steps: K >= 1, gradients; the paper's are 100, 300 and 1000.
      initial_norm: r_0 > 0, in units of [0, 1] pixels; the paper's 1.
      gamma: in (0, 1), how fast the norm changes; the paper's .05.
      first_step_size: alpha_0 > 0, L2 length in units of [0, 1] pixels; the paper's 1.
      last_step_size: what alpha_t anneals to along a cosine; the paper's .01.

    Returns:
      The attack. K forward and backward passes; the knob 'eps' is the largest distance that counts,
      infinite for the minimum-norm result. The recorded loss is minus the distance where the image
      fools. It starts at the clean image and draws nothing (but a random direction where a gradient
      vanishes) unless the knob 'restart' is above 0.

    Raises:
      ValueError: for an option out of range.

    Differs from the paper in: no quantization to 256 levels (judge the quantized images instead);
    restarts. As in the authors' code, and not in the paper, the norm never exceeds the distance to
    the farthest corner of the box.

    References:
      Rony et al., Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks
      and Defenses, CVPR 2019, algorithm 1.
    """
    if num_steps < 1 or not 0 < gamma < 1:
        raise ValueError(f'ddn needs num_steps >= 1 and gamma in (0, 1), not {num_steps}, {gamma}')
    if min(initial_norm, first_step_size, last_step_size) <= 0:
        raise ValueError(f'ddn needs initial_norm, first_step_size and last_step_size > 0, '
                         f'not {initial_norm}, {first_step_size}, {last_step_size}')

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        return nearest.begin(keys, images, knobs, jnp.full(len(images), initial_norm, images.dtype), norm='l2')

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs, loss, gradient = looks.loss_and_gradient(victim, state, targets)
        wrong = ~victim.acceptable(outputs, targets)
        state, _ = nearest.record(state, images, loss, wrong, norm='l2')
        length = nearest.annealed(first_step_size, last_step_size, state.step, num_steps, images.dtype)
        moved = state.images - images + per_example(length, images) * _unit(_never_zero(gradient, state))
        norm = jnp.minimum(state.inner * jnp.where(wrong, 1 - gamma, 1 + gamma),
                           nearest.farthest(images, norm='l2'))
        moved = balls.to_box(images + per_example(norm, images) * _unit(moved))
        return nearest.finish(looks.move_to(state, moved, norm), state.step >= num_steps)

    return Attack(init, step, num_steps)


def _unit(vectors: Array) -> Array:
    return balls.ascent_direction(vectors, norm='l2')


def _never_zero(gradient: Array, state: AttackState) -> Array:
    """`gradient`, or Gaussian noise for the examples whose gradient is zero."""
    keys = rng.fold(rng.fold(state.key, _DIRECTIONS), state.step)
    dtype = jnp.promote_types(gradient.dtype, jnp.float32)
    noise = rng.normal(keys, gradient.shape[1:], dtype).astype(gradient.dtype)
    vanished = balls.norm_of(gradient, norm='linf') == 0
    return jnp.where(per_example(vanished, gradient), noise, gradient)
