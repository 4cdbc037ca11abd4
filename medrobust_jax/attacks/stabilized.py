r"""SMIA, the stabilized medical image attack.

Deviate from the label, and stay consistent with the prediction at the smoothed perturbation:

    L_t     = a1 loss(f(x_t), y) - a2 D(z_{t-1}, f(x_t)),        no D at t = 0
    g_t     = sign(grad_x L_t)
    z_t     = stop_gradient f(x_t + r eps (W * g_t)),            W a depthwise Gaussian
    x_{t+1} = clip_{[0,1]}(x + P_eps(x_t + step * g_t - x))

Contents: `smia`.

Example:

    attack = smia(num_steps=20, stabilization_weight=1.0)
    result = run(attack, victim, keys, images, labels, eps=4 / 255)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.attacks import looks
from medrobust_jax.attacks.pgd import check_options, climb, start_noise
from medrobust_jax.core import balls
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.filters import gaussian_weights, smooth
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim
from medrobust_jax.losses.consistency import STABILIZATIONS


def smia(*, num_steps: int = 20, norm: str = 'linf', relative_step_size: float | None = None,
         start: str = 'clean', deviation_weight: float = 1.0, stabilization_weight: float = 1.0,
         stabilization: str | Callable[[Outputs, Outputs], Array] = 'kl', stabilization_radius: float = 1.0,
         kernel_size: int = 3, sigma: float = 1.0, dilation: int = 1) -> Attack:
    """The stabilized medical image attack.

    Args:
      num_steps: K >= 1.
      norm: 'linf', 'l2' or 'l1'; the paper's is 'linf'.
      relative_step_size: step / eps; default 2.5 / K [ours].
      start: 'clean' (the paper's), 'ball' or 'gaussian'.
      deviation_weight: a1, 1 [code].
      stabilization_weight: a2 >= 0. The published code's default is 0, which switches the method
        off; ours is 1.
      stabilization: D as a name ('kl': KL(softmax z || softmax f(x)), 'hard': cross-entropy to
        argmax z, 'squared_error' for regression) or as `(reference, outputs) -> [B]`.
      stabilization_radius: r, how far along the smoothed direction the reference lies, in eps; 1.
      kernel_size: taps of W per axis, odd; 3 [code].
      sigma: its standard deviation in taps; 1 [code].
      dilation: pixels between taps; the published script's is 2, ours 1.

    Returns:
      The attack. Each step costs two forward passes and one backward pass. The recorded loss is the
      victim's, without the stabilization term.

    Raises:
      ValueError: for an option out of range or an unknown name.

    Differs from the paper in: the iterate is projected to the ball; W is centered, normalized and
    depthwise; a2 defaults to 1. The published script cannot run as it stands.

    References:
      Qi et al., Stabilized Medical Image Attacks, ICLR 2021, arXiv 2103.05232.
    """
    check_options(num_steps=num_steps, norm=norm, relative_step_size=relative_step_size, start=start)
    if stabilization_weight < 0 or dilation < 1:
        raise ValueError(f'smia needs stabilization_weight >= 0 and dilation >= 1, '
                         f'not {stabilization_weight}, {dilation}')
    if isinstance(stabilization, str) and stabilization not in STABILIZATIONS:
        did_you_mean(stabilization, STABILIZATIONS, 'stabilization')
    distance = STABILIZATIONS[stabilization] if isinstance(stabilization, str) else stabilization
    ratio = 2.5 / num_steps if relative_step_size is None else relative_step_size
    weights = gaussian_weights(size=kernel_size, sigma=sigma)

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        first = balls.to_box(images + start_noise(keys, images, knobs['eps'], start=start, norm=norm))
        shapes = jax.eval_shape(victim.forward, images, keys)
        return looks.start_state(keys, first, knobs,
                                 jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        weight = jnp.where(state.step > 0, stabilization_weight, 0.0).astype(images.dtype)

        def objective(outputs: Outputs, loss: Array) -> Array:
            return deviation_weight * loss - weight * distance(state.inner, outputs)

        outputs, loss, gradient = looks.loss_and_gradient(victim, state, targets, objective)
        room = balls.room_of(state.images, ratio * state.knobs['eps'])
        direction = balls.ascent_direction(gradient, norm=norm, room=room)
        reach = per_example(stabilization_radius * state.knobs['eps'], images)
        smoothed = state.images + reach * smooth(direction, weights, dilation=dilation)
        reference = jax.lax.stop_gradient(victim.forward(smoothed, looks.pass_keys(state)))
        state = looks.record(state, loss, victim.acceptable(outputs, targets))
        return looks.move_to(state, climb(images, state, direction, ratio=ratio, norm=norm), reference)

    return Attack(init, step, num_steps)
