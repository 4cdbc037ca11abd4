r"""How APGD climbs in L1: sparse steps whose sparsity follows the best point's, in shrinking balls.

    x_{t+1} = P(x_t + s_t u_t / ||u_t||_1),     u_t = sign(g_t) on its k_t largest entries, else 0

P is the projection to the ball *and* the box at once; there is no momentum. With n_best the number
of pixels in which the best point differs from the clean image, at every checkpoint

    k = ceil(n_best / 1.5)
    if n_best fell by more than 5 % since the last checkpoint:  s = radius, and go on from the best point
    else:                                                       s = max(s / 1.5, radius / 10)

Three phases with radii 3, 2 and 1 x eps take 30, 30 and 40 % of the moves; each starts from the best
point of the one before, projected to its own ball. Only looks of the last phase count.

Contents: `phases`, `sparse_ascent`, `project_to_ball_and_box`, `sparse_sign`.

Example:

    delta = project_to_ball_and_box(images, delta, eps)      # ||delta||_1 <= eps, images + delta in [0, 1]
"""
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.attacks.apgd_ascent import Ascent, loss_dtype, pick
from medrobust_jax.core import balls, rng
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, AttackState, PyTree


def phases(num_steps: int, *, larger_radii: bool) -> tuple[list[int], list[float]]:
    """The phases' numbers of moves and their radii in eps.

    Raises:
      ValueError: for fewer than three moves in three phases.
    """
    if not larger_radii:
        return [num_steps], [1.]
    early = math.ceil(.3 * num_steps)
    if num_steps < 3:
        raise ValueError(f'num_steps = {num_steps} must be at least 3 for the three phases of norm l1')
    return [early, early, num_steps - 2 * early], [3., 2., 1.]


def project_to_ball_and_box(images: Array, delta: Array, radius: Array) -> Array:
    """The nearest `delta'` (in L2) to `delta` with `||delta'||_1 <= radius` and `images + delta'` in the box.

    Per entry, `|delta'| = |delta| - clip(level, excess, |delta|)`, where `excess` is how far the
    entry leaves the box, and the level is 0 or makes the L1 norm equal to the radius: a root of a
    piecewise linear function, found by sorting its 2n breakpoints. Entries that vanish are 0 exactly.

    Args:
      images: `[B, ...]` in [0, 1].
      delta: `[B, ...]`.
      radius: `[B]`.

    References: Croce and Hein, Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image
    Classifiers, ICML 2021, proposition 2.1.
    """
    wide = jnp.promote_types(delta.dtype, jnp.float32)
    return jax.vmap(_project_one)(*(a.astype(wide) for a in (images, delta, radius))).astype(delta.dtype)


def _project_one(image: Array, delta: Array, radius: Array) -> Array:
    size = jnp.abs(delta).ravel()
    excess = jnp.maximum(size - jnp.where(delta > 0, 1 - image, image).ravel(), 0)
    to_remove, removed_by_box = size.sum() - radius, excess.sum()
    ends, slopes = jax.lax.sort((jnp.concatenate([excess, size]), jnp.repeat(jnp.array([1, -1]), size.size)),
                                num_keys=1)
    slopes = jnp.cumsum(slopes).astype(size.dtype)  # of `removed`, to the right of every end
    added = jnp.cumsum(slopes[:-1] * jnp.diff(ends))
    removed = removed_by_box + jnp.concatenate([jnp.zeros(1, size.dtype), added])
    segment = jnp.maximum(jnp.sum(removed < to_remove) - 1, 0)
    level = ends[segment] + (to_remove - removed[segment]) / jnp.maximum(slopes[segment], 1)
    # `to_remove` rounds where it is much larger than the radius; what is kept does not.
    kept = size - jnp.clip(level, excess, size)
    level += (kept.sum() - radius) / jnp.maximum(jnp.sum((excess < level) & (level < size)), 1)
    level = jnp.where(to_remove > removed_by_box, level, 0)
    kept = jnp.where(radius > 0, size - jnp.clip(level, excess, size), 0)
    return jnp.sign(delta) * kept.reshape(delta.shape)


def sparse_sign(gradient: Array, count: Array) -> Array:
    """The sign on each example's `count` `[B]` largest entries (more where equal), of L1 norm 1; `[B, ...]`."""
    size = jnp.abs(gradient).reshape(gradient.shape[0], -1)
    smallest = jax.vmap(lambda ordered, place: ordered[place])(jnp.sort(size, axis=1), size.shape[1] - count)
    sign = jnp.where(jnp.abs(gradient) >= per_example(smallest, gradient), jnp.sign(gradient), 0)
    return sign / per_example(jnp.maximum(balls.norm_of(sign, norm='l1'), 1), sign)


def sparse_ascent(*, num_steps: int, larger_radii: bool, random_start: bool) -> Ascent:
    """APGD's ascent for 'l1', as the module's docstring states it.

    Provenance of the constants: the authors' code. The first `k` is 20 % of the entries, and the
    first checkpoint compares with all of them, where there is one phase or no random start; else
    `k = ceil(n / 1.5)`, with n the pixels that the start changes, in all phases. A checkpoint comes
    every `max(1, int(.04 * moves))` moves of a phase.

    Differs from the authors' code in: a pixel counts as changed if it differs from the clean
    image's, while there the rounding of `x + d - d` makes some differ that were set back.

    Args:
      num_steps: moves in all phases together.
      larger_radii: three phases; else one, with radius eps.
      random_start: whether the attack starts from `Ascent.start` or from the clean image.

    Returns:
      The ascent. Every phase but the last spends one more look than moves; the jump to the next
      phase's start counts as a move of the attack.
    """
    moves, radii = phases(num_steps, larger_radii=larger_radii)
    first_looks = np.cumsum([0] + [m + 1 for m in moves[:-1]]).tolist()
    windows = [max(int(.04 * m), 1) for m in moves]
    last_phase = len(moves) - 1

    def of_phase(phase: Array, values: Sequence[float]) -> Array:
        return jnp.sum(jnp.where(phase[:, None] == np.arange(len(values)), np.asarray(values), 0), axis=1)

    def start(keys: Array, images: Array, eps: Array) -> Array:
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        noise = rng.normal(keys, images.shape[1:], dtype).astype(images.dtype)
        return balls.to_box(images + project_to_ball_and_box(images, noise, radii[0] * eps))

    def init(images: Array) -> PyTree:
        zero, none = jnp.zeros(images.shape[0], loss_dtype(images)), jnp.zeros(images.shape[0], jnp.int32)
        return {'best': images, 'best_gradient': jnp.zeros_like(images), 'best_loss': zero, 'step_ratio': zero,
                'changed': none, 'count': none}

    def move(images: Array, state: AttackState, loss: Array, gradient: Array) -> tuple[Array, PyTree]:
        inner, look, eps, size = state.inner, state.step, state.knobs['eps'], images[0].size
        phase = jnp.sum(look[:, None] >= np.array(first_looks[1:], np.int32), axis=1)
        moves_made = look - of_phase(phase, first_looks)
        begins, leaves = moves_made == 0, (moves_made == of_phase(phase, moves)) & (phase < last_phase)

        loss = jnp.where(jnp.isnan(loss), -jnp.inf, loss).astype(inner['best_loss'].dtype)
        better = begins | (loss > inner['best_loss'])
        best = pick(better, state.images, inner['best'])
        best_gradient = pick(better, gradient, inner['best_gradient'])
        changed = jnp.sum((best != images).reshape(len(images), -1), axis=1, dtype=jnp.int32)
        count = jnp.clip((2 * changed + 2) // 3, 1, size)
        check = ~begins & (moves_made % of_phase(phase, windows) == 0)
        # Integers: a fall by more than 5 % is one by more than floor(changed / 20).
        sparser = check & (inner['changed'] - changed > inner['changed'] // 20)
        ratio = jnp.where(check, jnp.maximum(inner['step_ratio'] / 1.5, .1), inner['step_ratio'])
        ratio = jnp.where(begins | sparser, 1, ratio)
        if last_phase == 0 or not random_start:
            changed = jnp.where(look == 0, size, changed)
            count = jnp.where(look == 0, size - min(int((1 - .2) * size), size - 1), count)
        changed = jnp.where(begins | check, changed, inner['changed'])
        count = jnp.where(begins | check, count, inner['count'])

        point, gradient = pick(sparser, best, state.images), pick(sparser, best_gradient, gradient)
        radius = eps * of_phase(phase + leaves, radii).astype(eps.dtype)
        length = per_example((radius * ratio).astype(images.dtype), images)
        point = pick(leaves, best, point + length * sparse_sign(gradient, count))
        moved = balls.to_box(images + project_to_ball_and_box(images, point - images, radius))
        return moved, {'best': best, 'best_gradient': best_gradient, 'step_ratio': ratio, 'count': count,
                       'best_loss': jnp.where(better, loss, inner['best_loss']), 'changed': changed}

    return Ascent(num_steps + last_phase, start, init, lambda look: look >= first_looks[-1], move)
