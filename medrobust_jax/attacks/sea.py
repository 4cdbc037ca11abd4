r"""SEA, the segmentation ensemble attack: four runs of APGD along four losses.

Each run climbs one loss with APGD's momentum, in three phases of 30, 30 and 40 % of the moves:

    radius        2 eps, 1.5 eps, eps;  each phase starts from the image that the last one kept, projected
    gradient of   masked CE | SegPGD's loss | Jensen-Shannon | masked normalized logit
    step size     by APGD's rule on the plain mean cross-entropy, which is one measure for all four
    kept          the image with the lowest pixel accuracy

An image counts as attacked by the worst of the four. Looks of the first two phases lie outside the ball
and are not recorded.

Contents: `sea` (the four attacks by name), `sea_run` (one of them), `SEA_LOSSES`.

Example:

    results = [run(attack, victim, keys, images, targets, eps=4 / 255) for attack in sea().values()]
    worst = functools.reduce(wrappers.strongest, results)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.attacks import looks
from medrobust_jax.attacks.apgd_ascent import into, momentum_ascent, pick
from medrobust_jax.attacks.apgd_l1 import phases
from medrobust_jax.attacks.dense import wrong_weight
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim
from medrobust_jax.losses import pixelwise
from medrobust_jax.losses.segmentation import mean_cross_entropy

RADII = (2.0, 1.5, 1.0)
NORMS = ('linf', 'l2')
# name -> (outputs, targets, lambda [B] of SegPGD) -> [B]
SEA_LOSSES: dict[str, Callable[[Outputs, Targets, Array], Array]] = {
    'masked_ce': lambda outputs, targets, _: pixelwise.masked_cross_entropy(outputs, targets),
    'segpgd': pixelwise.balanced_cross_entropy,
    'jensen_shannon': lambda outputs, targets, _: pixelwise.jensen_shannon(outputs, targets),
    'normalized_logit': lambda outputs, targets, _: pixelwise.masked_normalized_logit(outputs, targets),
}


def sea(*, num_steps: int = 300, norm: str = 'linf', rho: float = 0.75) -> dict[str, Attack]:
    """The four attacks of the ensemble, by name; arguments as `sea_run`."""
    return {f'sea_{loss}': sea_run(loss, num_steps=num_steps, norm=norm, rho=rho) for loss in SEA_LOSSES}


def sea_run(loss: str, *, num_steps: int = 300, norm: str = 'linf', rho: float = 0.75) -> Attack:
    """One run of the ensemble.

    Args:
      loss: a key of `SEA_LOSSES`.
      num_steps: moves in all phases together, >= 3; the authors' 300 makes 90, 90 and 120.
      norm: 'linf' or 'l2'; the ball's radius is the knob 'eps'. The authors' is 'linf'.
      rho: as `apgd`.

    Returns:
      The attack; it makes `num_steps + 3` looks. Recorded as its loss is the pixel error in [0, 1], which
      can be compared between the four. Reads the knob 'restart' `[B]`, which changes the random start.

    Raises:
      ValueError: for an option out of range or an unknown name.

    Differs from the authors' code in: APGD as `apgd` has it; an image that fails the task's criterion
    beats one that meets it, then the pixel error decides; judged is each image by itself.

    References:
      Croce, Singh, Hein, Towards Reliable Evaluation and Fast Training of Robust Semantic Segmentation
      Models, ECCV 2024, section 3; the split of 300 moves, the radii and what steers: the authors' code.
    """
    if loss not in SEA_LOSSES:
        did_you_mean(loss, SEA_LOSSES, 'SEA loss')
    if norm not in NORMS:
        did_you_mean(norm, NORMS, 'norm of SEA')
    if num_steps < 3 or not 0 <= rho <= 1:
        raise ValueError(f'SEA needs num_steps >= 3 and rho in [0, 1], not {num_steps} and {rho}')
    moves, _ = phases(num_steps, larger_radii=True)
    first_looks = np.cumsum([0] + [m + 1 for m in moves[:-1]]).astype(np.int32)
    ascents = {m: momentum_ascent(num_steps=m, norm=norm, rho=rho) for m in sorted(set(moves))}
    fresh = ascents[moves[0]].init  # the same for any number of moves

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        restart = knobs.get('restart')
        keys = keys if restart is None else jnp.where(restart > 0, rng.fold(keys, restart), keys)
        first = balls.to_box(images + balls.random_start(keys, images, RADII[0] * knobs['eps'], norm=norm))
        error = jnp.full(images.shape[0], -jnp.inf, jnp.float32)
        inner = {'ascent': fresh(first), 'kept': first, 'kept_error': error}
        # The clean image is the best so far: the first looks may lie outside the ball.
        return looks.start_state(keys, first, knobs, inner).replace(best_images=images)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        phase = jnp.sum(state.step[:, None] >= first_looks[1:], axis=1)
        made = state.step - _of_phase(phase, first_looks)  # moves in this phase
        planned = _of_phase(phase, moves)

        def objective(outputs: Outputs, _: Array) -> Array:
            return SEA_LOSSES[loss](outputs, targets, wrong_weight(made, 1) / planned)

        outputs, error, gradient = looks.loss_and_gradient(victim, state, targets, objective)
        counts = phase == len(moves) - 1
        recorded = looks.record(state, jnp.where(counts, error, -jnp.inf),
                                victim.acceptable(outputs, targets) | ~counts)
        inner = state.inner
        better = (made == 0) | (error > inner['kept_error'])
        kept = pick(better, state.images, inner['kept'])
        kept_error = jnp.where(better, error, inner['kept_error'])

        eps = state.knobs['eps']
        inside = state.replace(step=made, inner=inner['ascent'],
                               knobs={**state.knobs, 'eps': eps * _of_phase(phase, RADII).astype(eps.dtype)})
        climbed = mean_cross_entropy(outputs, targets)
        moved = _by_phase(planned, {m: ascent.move(images, inside, climbed, gradient)
                                    for m, ascent in ascents.items()})
        leaves = (made == planned) & ~counts
        radius = eps * _of_phase(jnp.minimum(phase + 1, len(moves) - 1), RADII).astype(eps.dtype)
        start = into(images, kept, radius, norm=norm)
        images_after, ascent_after = jax.tree.map(lambda new, old: pick(leaves, new, old),
                                                  (start, fresh(start)), moved)
        return looks.move_to(recorded, images_after,
                             {'ascent': ascent_after, 'kept': kept, 'kept_error': kept_error})

    return Attack(init, step, num_steps + len(moves) - 1,
                  lambda victim: victim._replace(loss=pixelwise.pixel_error))


def _of_phase(phase: Array, values: np.ndarray | list | tuple) -> Array:
    """`values[phase]`, `[B]`."""
    return jnp.sum(jnp.where(phase[:, None] == np.arange(len(values)), np.asarray(values), 0), axis=1)


def _by_phase(planned: Array, results: dict[int, tuple]) -> tuple:
    """The result of each example's number of moves."""
    (_, chosen), *others = results.items()
    for number, result in others:
        chosen = jax.tree.map(lambda new, old, n=number: pick(planned == n, new, old), result, chosen)
    return chosen
