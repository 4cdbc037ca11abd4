r"""FAB, the fast adaptive boundary attack: the nearest misclassified image, by linearizing the boundary.

    h    = the hyperplane {v : f(x_t) + <grad f(x_t), v - x_t> = 0},    f = z_k - z_y
    d_1  = shortest way from x_t to h in the box,    d_2 = the same from x
    a    = min(||d_1|| / (||d_1|| + ||d_2||), alpha_max)
    c    = clip_{[0,1]}((1 - a)(x_t + eta d_1) + a (x + eta d_2))
    x_{t+1} = x + beta (c - x) where c is misclassified, else c

k is the class whose hyperplane is nearest or, targeted, one class throughout. It minimizes the norm, whatever the
radius; the radius decides which images count as fooled.

Contents: `fab`.

Example:

    attack = fab(num_steps=100, norm='linf')
    result = run(attack, victim, keys, images, labels, eps=8 / 255)         # or eps=jnp.inf: the smallest norm
    distance = balls.norm_of(result.images - images, norm='linf')
"""
import jax
import jax.numpy as jnp

from medrobust_jax.attacks import looks, nearest
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.hyperplanes import DUAL, to_hyperplane
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

_START = 0xFAB  # keeps the keys of starts apart from those of passes and restarts
_REACH = {'linf': .3, 'l2': 1., 'l1': 5.}  # the authors' radii, for starts where the knob 'eps' is infinite
_SMALLEST = 1e-8  # of a distance in the mixing weight


def fab(*, num_steps: int = 100, norm: str = 'linf', targeted: bool = False, alpha_max: float = .1,
        eta: float = 1.05, beta: float = .9) -> Attack:
    """The fast adaptive boundary attack, FAB, and FAB-T.

    An image fools when it is misclassified, as anything, at a distance of at most the knob 'eps',
    which may be infinite; the nearest such image is kept, and the recorded loss is minus its
    distance (see `nearest`).

    Args:
      num_steps: iterations, >= 1; 100 in AutoAttack.
      norm: 'linf', 'l2' or 'l1': what is minimized.
      targeted: heads for one class throughout: the one that is number `target_rank` (a knob, 1
        where absent) among the wrong classes, by the clean outputs. An iteration then costs two
        forward passes and one backward pass, and C - 1 backward passes otherwise, whose gradients
        are held at once.
      alpha_max: the largest weight of the projection of the clean image, in [0, 1].
      eta: overshoot beyond the hyperplane, >= 1.
      beta: step back towards the clean image from a misclassified one, in (0, 1).

    Returns:
      The attack. Knobs: 'restart' (0 where absent) starts at the clean image, later ones at a random
      point at distance min(eps, distance) / 2 from it, where 'distance' is an optional knob: the
      nearest found so far. It takes one step more than `num_steps`, to look at the last iterate.
      An example ends there, or at a misclassified clean image, not when it is fooled:
      `stop_when_fooled` gives the same verdicts in fewer passes.

    Raises:
      ValueError: for an option out of range or an unknown norm; while attacking, for outputs that
        are not logits `[B, C]`, or targeted without clean outputs.

    References:
      Croce and Hein, Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack,
      ICML 2020, algorithm 1; FAB-T: Croce and Hein, Reliable Evaluation of Adversarial Robustness
      with an Ensemble of Diverse Parameter-free Attacks, ICML 2020. The constants are AutoAttack's.
    Differs from the paper in: no final search on the segment, as in AutoAttack. From AutoAttack in:
      a misclassified random start counts as found; weights below 1e-8 are used, not ignored; the
      target is ranked among the wrong classes.
    """
    if num_steps < 1:
        raise ValueError(f'num_steps = {num_steps} must be at least 1')
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')
    if not (0 <= alpha_max <= 1 <= eta and 0 < beta < 1):
        raise ValueError(f'fab needs alpha_max in [0, 1], eta >= 1 and beta in (0, 1), '
                         f'not {alpha_max}, {eta}, {beta}')

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        goals = _wrong_class(clean_outputs, targets, knobs) if targeted else ()
        return looks.start_state(keys, _start(keys, images, knobs, norm=norm), knobs, goals)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        # Again, for wrappers that decide by themselves which examples are done.
        state = state.replace(done=state.done | (state.step > num_steps))
        keys, moved = looks.pass_keys(state), state.step > 0
        outputs = victim.forward(state.images, keys)
        _check_logits(outputs)
        wrong = ~victim.acceptable(outputs, targets)
        state, _ = nearest.record(state, images, victim.loss(outputs, targets), wrong, norm=norm)
        back = per_example(moved & wrong, images)
        here = jnp.where(back, images + beta * (state.images - images), state.images)
        others = state.inner[:, None] if targeted else _other_classes(targets, outputs.shape[-1])
        value, normal = _nearest_boundary(victim, here, keys, targets, others, norm=norm)
        first, second = _both_ways(here, images, value, normal, norm=norm)
        reach = [jnp.maximum(balls.norm_of(d, norm=norm), _SMALLEST) for d in (first, second)]
        weight = per_example(jnp.minimum(reach[0] / (reach[0] + reach[1]), alpha_max), images)
        mixed = (1 - weight) * (here + eta * first) + weight * (images + eta * second)
        state = looks.move_to(state, balls.to_box(mixed).astype(images.dtype), state.inner)
        return nearest.finish(state, state.step > num_steps)

    return Attack(init, step, num_steps + 1)


def _check_logits(outputs: Outputs) -> None:
    if not hasattr(outputs, 'ndim') or outputs.ndim != 2 or outputs.shape[1] < 2:
        shapes = jax.tree.map(jnp.shape, outputs)
        raise ValueError(f'fab needs logits [batch, classes] of two classes or more, not outputs shaped {shapes}')


def _start(keys: Array, images: Array, knobs: Knobs, *, norm: str) -> Array:
    """The clean image at restart 0, else a random image at half the radius (before the box)."""
    if 'restart' not in knobs:
        return images
    restart = knobs['restart']
    reach = jnp.where(jnp.isinf(knobs['eps']), _REACH[norm], knobs['eps'])
    reach = jnp.minimum(reach, knobs.get('distance', jnp.inf)).astype(images.dtype)
    own = rng.fold(rng.fold(keys, _START), restart)
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    shape = images.shape[1:]
    noise = rng.uniform(own, shape, -1., 1., dtype) if norm == 'linf' else rng.normal(own, shape, dtype)
    noise = (noise / per_example(balls.norm_of(noise, norm=norm), noise)).astype(images.dtype)
    random = balls.to_box(images + per_example(reach / 2, images) * noise)
    return jnp.where(per_example(restart > 0, images), random, images)


def _wrong_class(clean_outputs: Outputs | None, targets: Targets, knobs: Knobs) -> Array:
    """The class `[B]` of the knob 'target_rank' among the wrong ones, by falling clean logits; the last where
    there are fewer."""
    if clean_outputs is None:
        raise ValueError('fab(targeted=True) ranks its target by the clean outputs: pass clean_outputs')
    _check_logits(clean_outputs)
    num_classes = clean_outputs.shape[1]
    is_label = jnp.arange(num_classes) == targets[:, None]
    order = jnp.argsort(jnp.where(is_label, jnp.inf, -clean_outputs), axis=1)
    rank = jnp.broadcast_to(knobs.get('target_rank', 1), targets.shape)
    return jnp.take_along_axis(order, jnp.clip(rank, 1, num_classes - 1)[:, None] - 1, axis=1)[:, 0]


def _other_classes(targets: Array, num_classes: int) -> Array:
    """All classes but the label's, `[B, C - 1]`."""
    classes = jnp.arange(num_classes - 1)
    return classes + (classes >= targets[:, None])


def _nearest_boundary(victim: Victim, points: Array, keys: Array, targets: Array, others: Array, *,
                      norm: str) -> tuple[Array, Array]:
    """Linearizes `z_k - z_y` for the classes k in `others` `[B, K]`, and picks the boundary nearest to each point.

    Returns:
      the value `[B]` and the gradient `[B, *spatial, C]` there; zero where they are not finite.
    """
    outputs, pull = jax.vjp(lambda images: victim.forward(images, keys), points)
    classes = jnp.arange(outputs.shape[1])
    is_label = (classes == targets[:, None]).astype(outputs.dtype)
    ways = (classes == others[:, :, None]).astype(outputs.dtype) - is_label[:, None]
    if others.shape[1] == 1:
        normals = pull(ways[:, 0])[0][:, None]
    else:
        normals = jax.vmap(lambda way: pull(way)[0], in_axes=1, out_axes=1)(ways)
    normals = jnp.where(jnp.isfinite(normals), normals, 0)
    values = jnp.take_along_axis(outputs, others, axis=1) - jnp.take_along_axis(outputs, targets[:, None], axis=1)
    values = jnp.where(jnp.isfinite(values), values, 0).astype(points.dtype)
    dual = balls.norm_of(normals.reshape(-1, points[0].size), norm=DUAL[norm]).reshape(values.shape)
    nearest = jnp.argmin(jnp.abs(values) / (1e-12 + dual), axis=1)[:, None]
    return (jnp.take_along_axis(values, nearest, axis=1)[:, 0],
            jnp.take_along_axis(normals, nearest.reshape(-1, *[1] * points.ndim), axis=1)[:, 0])


def _both_ways(here: Array, images: Array, value: Array, normal: Array, *, norm: str) -> tuple[Array, Array]:
    """The shortest ways to the hyperplane from the iterate and from the clean image."""
    change = jnp.sum((normal * (images - here)).reshape(len(images), -1), axis=1)
    ways = to_hyperplane(jnp.concatenate([here, images]), jnp.concatenate([normal, normal]),
                         jnp.concatenate([value, value + change]), norm=norm)
    return ways[:len(images)], ways[len(images):]
