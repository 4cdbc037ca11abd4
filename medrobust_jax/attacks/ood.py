r"""Making an image that is no such image pass for one: reach a real image's output from a foreign image.

    minimize over d:   distance(f(x + d), f(x1)),      ||d||_2 <= rho,  x + d in [0, 1]

where x shows something else (noise, another modality) and x1 is real. A model that answers the foreign
image as it answers the real one does not look at what it should. The same moves without a wanted
output are an attack inside a ball, `pgd_adamax`.

Contents: `ood`, `reaching` (a victim whose targets are wanted outputs), `pgd_adamax`.

Example:

    wanted = forward(real_images, keys)
    victim = reaching(forward, output_distance, tolerance=.05)        # losses.shape.output_distance
    result = run(ood(num_steps=2000), victim, keys, foreign_images, wanted, eps=20.)
    reached = ~result.acceptable;  distance = -result.loss

References:
  arXiv 2102.02885 and its authors' code, for what is marked [code].
"""
from collections.abc import Callable

import jax.numpy as jnp

from medrobust_jax.attacks import directions, looks
from medrobust_jax.attacks.pgd import check_options, pgd, start_noise
from medrobust_jax.core import balls
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim


def ood(*, num_steps: int = 2000, norm: str = 'l2', learning_rate: float = .01, start: str = 'ball') -> Attack:
    """Adamax on the perturbation, fed with the normalized gradient; the victim is made by `reaching`.

    Each move: d plus the learning rate times Adamax's direction; d clipped to [-1, 1], projected onto
    the ball, the image clipped to the box, and d taken from it anew [code].

    Args:
      num_steps: K >= 1; 2000 for a plain network, 4000 for one that reconstructs its input [code].
      norm: of the ball and of the gradient's normalization; 'l2' [code]. The knob 'eps' is rho: 20 for
        plain networks, 40 for those that reconstruct, at 128 x 128 pixels [code].
      learning_rate: Adamax's, > 0, in pixel values; .01 [code].
      start: 'ball' (random) [code], 'clean' or 'gaussian'.

    Returns:
      The attack. The image kept is the nearest in outputs of all looked at.

    Raises:
      ValueError: for an option out of range or an unknown norm or start.

    Differs from the code in: it keeps the best image looked at, not the last.
    """
    check_options(num_steps=num_steps, norm=norm, relative_step_size=None, start=start)
    if learning_rate <= 0:
        raise ValueError(f'learning_rate = {learning_rate} must be positive')
    rule = directions.adamax(norm=norm)

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        first = balls.to_box(images + start_noise(keys, images, knobs['eps'], start=start, norm=norm))
        return looks.start_state(keys, first, knobs, rule.init(images))

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs, loss, gradient = looks.loss_and_gradient(victim, state, targets)
        state = looks.record(state, loss, victim.acceptable(outputs, targets))
        room = balls.room_of(state.images, jnp.full_like(loss, learning_rate))
        move, inner = rule.update(gradient, state.inner, state.step, room)
        moved = jnp.clip(state.images - images + learning_rate * move, -1, 1)
        moved = balls.to_box(images + balls.project(moved, state.knobs['eps'], norm=norm))
        return looks.move_to(state, moved, inner)

    return Attack(init, step, num_steps)


def reaching(forward: Callable[[Array, Array], Outputs], distance: Callable[[Outputs, Outputs], Array], *,
             tolerance: float = 0.) -> Victim:
    """A victim whose targets are outputs to be reached.

    Args:
      forward: the model, as in `Victim`.
      distance: `(outputs, wanted outputs) -> [B]`, >= 0, the task's: `losses.shape.output_distance`, say.
      tolerance: outputs as near as this count as reached.

    Returns:
      The victim: its loss is minus the distance; it is 'acceptable' while the outputs are apart.
    """
    def apart(outputs: Outputs, wanted: Outputs) -> Array:
        # Written so that NaN, which is no wanted output, counts as apart.
        return ~(distance(outputs, wanted) <= tolerance)

    return Victim(forward, lambda outputs, wanted: -distance(outputs, wanted), apart)


def pgd_adamax(*, num_steps: int = 100, norm: str = 'linf', relative_step_size: float | None = .2,
               start: str = 'ball') -> Attack:
    """Adamax on the perturbation fed with sign gradients: the shape paper's attack inside the distribution.

    Args:
      num_steps: K >= 1; 100 [code].
      norm: 'linf' [code], 'l2' or 'l1', whose steepest ascent is then fed to Adamax.
      relative_step_size: learning rate / eps; 1/5 [code]. In 'l2' and 'l1' Adamax's move per pixel is
        about that too, and the projection brings it back.
      start: 'ball' [ours], 'clean' or 'gaussian'.

    It climbs the task's loss; in the registry 'pgd_adamax_points' and 'pgd_adamax_mask' climb the paper's two,
    `losses.shape.shape_regression_attack_loss` and `shape_mask_attack_loss` [code].
    """
    return pgd(num_steps=num_steps, norm=norm, relative_step_size=relative_step_size, start=start,
               direction=directions.adamax(norm=norm))
