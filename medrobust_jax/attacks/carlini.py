r"""The attacks of Carlini and Wagner: L2 in tanh space, and their loss inside a ball.

L2, with m the margin (> 0 where the prediction is wrong) and kappa the confidence:

    minimize over w:   ||x'(w) - x||_2^2 + c max(0, kappa - m(x'(w))),      x'(w) = (tanh(w) + 1) / 2

by Adam from x'(w) = x, for one constant c after another: the first is small and grows tenfold until
an image is found; then the interval between the largest c that failed and the smallest that worked
is halved.

Contents: `cw_l2`, `cw_linf`.

Example:

    attack = cw_l2(num_steps=1000, search_steps=9)
    result = run(attack, victim, keys, images, labels, eps=jnp.inf)
    distances = -result.loss                  # of the images that fool: ~result.acceptable
"""
from functools import partial

import jax
import jax.numpy as jnp

from medrobust_jax.attacks import directions, looks, nearest
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.wrappers import with_loss
from medrobust_jax.core import balls
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, PyTree, Targets, Victim
from medrobust_jax.losses.classification import margin

_LARGEST_CONSTANT = 1e10  # of the repeated last search [code]
_LIMIT = 0.995  # of tanh at the start: of 8-bit images it moves black and white alone


def cw_l2(*, num_steps: int = 1000, search_steps: int = 9, learning_rate: float = 0.01,
          initial_constant: float = 1e-3, confidence: float = 0.0, abort_early: bool = True) -> Attack:
    """The L2 attack, for single-label classification.

    Args:
      num_steps: >= 1, Adam steps per constant. The paper's and the authors' code's are 10,000, ours
        1000.
      search_steps: >= 1, constants tried; 9 [code], the paper's are 20. With 10 or more the last one
        repeats the smallest constant that worked [code].
      learning_rate: Adam's, > 0; .01 [code].
      initial_constant: c at first, > 0; 1e-3 [code].
      confidence: kappa >= 0, the margin in logits that images shall have.
      abort_early: leave a constant as soon as the objective has not fallen by a ten-thousandth of
        itself within a tenth of the steps [code].

    Returns:
      The attack, of at most `num_steps * search_steps` forward and backward passes. The knob 'eps'
      is the largest distance that counts, infinite for the minimum-norm result. The recorded loss
      is minus the distance where the image fools with the confidence asked for. An image that fools
      with less counts as fooling too, but is handed back only for want of better ones. Nothing is
      drawn unless the knob 'restart' is above 0.

    Raises:
      ValueError: for an option out of range.

    Differs from the paper in: every example aborts and searches by its own objective, where the
    authors' code aborts by the batch's sum; `x'(w) = x + (tanh(w) - tanh(w_0)) / 2`, clipped to the
    box, with `w_0 = artanh(2x - 1)` for pixels in [.0025, .9975] and that interval's ends for the
    others. So the first image is the clean one exactly, and black backgrounds take part: the
    authors' code starts them at tanh(w) = -.9999995, from where Adam needs 700 steps to reach mid
    grey. Without a target the confidence is asked of the winning class (the published comparison
    asks less where it means to ask more).

    References:
      Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, S&P 2017, sections V
      and VI-A; the authors' code for what is marked [code].
    """
    if num_steps < 1 or search_steps < 1:
        raise ValueError(f'cw_l2 needs num_steps >= 1 and search_steps >= 1, not {num_steps}, {search_steps}')
    if learning_rate <= 0 or initial_constant <= 0 or confidence < 0:
        raise ValueError(f'cw_l2 needs learning_rate > 0, initial_constant > 0 and confidence >= 0, '
                         f'not {learning_rate}, {initial_constant}, {confidence}')
    adam = directions.adam(norm='linf', floor=1e-8)
    period = max(num_steps // 10, 1)

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        state = nearest.begin(keys, images, knobs, norm='l2')
        first = _to_tanh(state.images)
        fill = partial(jnp.full, len(images))
        return state.replace(inner={
            'first': first, 'point': first, 'moments': adam.init(images), 'iteration': fill(0, jnp.int32),
            'search': fill(0, jnp.int32), 'constant': fill(initial_constant, images.dtype),
            'lower': fill(0, images.dtype), 'upper': fill(jnp.inf, images.dtype), 'found': fill(False),
            'previous': fill(jnp.inf, images.dtype)})

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        inner = state.inner
        outputs, loss, gradient = looks.loss_and_gradient(
            victim, state, targets, lambda _, m: -inner['constant'] * jax.nn.relu(confidence - m))
        wrong = ~victim.acceptable(outputs, targets)
        wanted = wrong & (loss >= confidence) if confidence else wrong
        state, distance = nearest.record(state, images, loss, wrong, norm='l2', wanted=wanted)
        objective = (distance**2 + inner['constant'] * jax.nn.relu(confidence - loss)).astype(images.dtype)

        slope = (2 * (state.images - images) - gradient) * (1 - jnp.tanh(inner['point'])**2) / 2
        iteration = inner['iteration'] + 1
        endless = jnp.full_like(slope, jnp.inf)  # tanh space has no ends to meet
        direction, moments = adam.update(slope, inner['moments'], iteration, balls.Room(endless, endless))
        check = inner['iteration'] % period == 0
        stuck = check & (objective > .9999 * inner['previous']) & abort_early
        after = {**inner, 'point': inner['point'] - learning_rate * direction, 'moments': moments,
                 'iteration': iteration, 'found': inner['found'] | wanted,
                 'previous': jnp.where(check, objective, inner['previous'])}
        over = stuck | (iteration >= num_steps)
        after = jax.tree.map(lambda new, old: jnp.where(per_example(over, old), new, old),
                             _next_search(after, search_steps), after)
        moved = balls.to_box(images + (jnp.tanh(after['point']) - jnp.tanh(_to_tanh(images))) / 2)
        state = looks.move_to(state, moved, after)
        return nearest.finish(state, state.inner['search'] >= search_steps)

    return with_loss(Attack(init, step, num_steps * search_steps), margin)


def _to_tanh(images: Array) -> Array:
    """The point of tanh space that is `images`, except near the ends of the box."""
    return jnp.arctanh(jnp.clip(2 * images - 1, -_LIMIT, _LIMIT))


def _next_search(inner: PyTree, search_steps: int) -> PyTree:
    """Begins anew from the first point, with the constant that bisection asks for."""
    found, constant = inner['found'], inner['constant']
    lower = jnp.where(found, inner['lower'], jnp.maximum(inner['lower'], constant))
    upper = jnp.where(found, jnp.minimum(inner['upper'], constant), inner['upper'])
    following = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, 10 * constant)
    search = inner['search'] + 1
    if search_steps >= 10:
        repeat = search == search_steps - 1
        following = jnp.where(repeat, jnp.minimum(upper, _LARGEST_CONSTANT), following)
    return {**inner, 'point': inner['first'], 'moments': jax.tree.map(jnp.zeros_like, inner['moments']),
            'iteration': jnp.zeros_like(inner['iteration']), 'search': search, 'constant': following,
            'lower': lower, 'upper': upper, 'found': jnp.zeros_like(found),
            'previous': jnp.full_like(inner['previous'], jnp.inf)}


def cw_linf(*, num_steps: int = 30, confidence: float = 50.0, relative_step_size: float = 0.19125,
            start: str = 'ball') -> Attack:
    """Projected gradient ascent on Carlini and Wagner's loss, in the Linf ball of radius eps.

    The loss climbed is `min(m, kappa)`, with m the margin.

    Args:
      num_steps: >= 1; 30 [code].
      confidence: kappa >= 0 in logits; 50 [code].
      relative_step_size: step / eps, > 0. The code's steps are .0015 at eps 1/255 and 2/255 and .003
        at 4/255 and 8/255, that is .3825, .19125, .19125 and .095625 of eps; the default is the
        middle value.
      start: 'ball' (uniform) [code], 'clean' or 'gaussian'.

    Raises:
      ValueError: for an option out of range or an unknown start.

    References:
      The benchmark code of Dong et al., Survey on Adversarial Attack and Defense for Medical Image
      Analysis: Methods and Challenges, ACM Computing Surveys, arXiv 2303.14133, for what is marked
      [code]. It is not the Linf attack of Carlini and Wagner's paper, which minimizes the norm.
    """
    if confidence < 0:
        raise ValueError(f'confidence = {confidence} must not be negative')
    climbing = pgd(num_steps=num_steps, norm='linf', relative_step_size=relative_step_size, start=start)
    return with_loss(climbing, lambda logits, labels: jnp.minimum(margin(logits, labels), confidence))
