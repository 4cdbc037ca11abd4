r"""The nearest fooling image so far: what minimum-norm attacks have in common.

    loss(x') = -||x' - x||            x' fools the model and is no farther away than the knob 'eps'
             = -far (1 + s)           x' lies within eps and does not fool: s in (0, 1) falls as the
                                      victim's loss rises
    far      = ||max(x, 1 - x)||,     the distance to the farthest corner of the box

so that the nearest fooling image has the highest loss, and an image that fools nobody a lower one
than every image that does. Images beyond eps are never kept. `eps` may be infinite.

Contents: `farthest`, `begin`, `record`, `finish`, `annealed`.

Example, the body of a step:

    outputs, loss, gradient = looks.loss_and_gradient(victim, state, targets)
    wrong = ~victim.acceptable(outputs, targets)
    state, distance = nearest.record(state, images, loss, wrong, norm='l2')
    return nearest.finish(looks.move_to(state, moved, inner), state.step >= num_steps)
"""
import jax.numpy as jnp

from medrobust_jax.attacks import looks
from medrobust_jax.core import balls
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, AttackState, Knobs, PyTree


def farthest(images: Array, *, norm: str) -> Array:
    """The largest `norm` that a perturbation of `images` `[B, ...]` can have inside the box, `[B]`; never 0."""
    return balls.norm_of(jnp.maximum(images, 1 - images), norm=norm)


def begin(keys: Array, images: Array, knobs: Knobs, inner: PyTree = (), *, norm: str) -> AttackState:
    """The state before the first look: at the clean image, or near it in later restarts.

    Args:
      keys: `[B]` typed keys.
      images: `[B, *spatial, C]`, the clean images.
      knobs: 'eps' `[B]`, the largest distance that counts, may be infinite; optionally 'restart'
        `[B]` int32, of which 0 starts at the clean image and others at a random point at most
        `min(eps / 2, far / 10)` away from it.
      inner: the attack's own arrays.
      norm: of the distance.
    """
    state = looks.start_state(keys, images, knobs, inner)
    if 'restart' not in knobs:
        return state
    reach = jnp.minimum(knobs['eps'] / 2, farthest(images, norm=norm) / 10)
    radius = jnp.where(knobs['restart'] > 0, reach, 0)
    noise = balls.random_start(keys, images, radius, norm=norm)
    return state.replace(images=balls.to_box(images + noise))


def record(state: AttackState, images: Array, loss: Array, wrong: Array, *, norm: str,
           wanted: Array | None = None) -> tuple[AttackState, Array]:
    """Enters a look at `state.images` into the records.

    Args:
      state: before the look.
      images: the clean images.
      loss: `[B]`, the victim's loss at `state.images`; it ranks images that fool nobody.
      wrong: `[B]` bool, whether the criterion fails there.
      norm: of the distance.
      wanted: `[B]` bool, which of the `wrong` images are what the attack is after, default all. The
        others count as fooling too, but are kept only for want of better ones.

    Returns:
      The state after the look, and the distance `[B]` of `state.images` from `images`.
    """
    distance = balls.norm_of(state.images - images, norm=norm)
    inside = distance <= state.knobs['eps']
    # Algebraic and not a sigmoid, which is flat in float32 for losses beyond 20.
    shortfall = (1 - loss / (1 + jnp.abs(loss))) / 2
    otherwise = -farthest(images, norm=norm) * (1 + shortfall)
    value = jnp.where(wrong if wanted is None else wrong & wanted, -distance, otherwise)
    return looks.record(state, jnp.where(inside, value, -jnp.inf), ~(wrong & inside)), distance


def finish(state: AttackState, ended: Array) -> AttackState:
    """Ends the examples `ended` `[B]`, and those fooled at distance 0: nothing is nearer.

    Their last iterate is the image kept. No later look changes their records, a runner's last one
    included, which knows nothing of distances.
    """
    ended = ended | (~state.acceptable & (state.best_loss >= 0))
    images = jnp.where(per_example(ended, state.images), state.best_images, state.images)
    return state.replace(images=images, done=state.done | ended)


def annealed(first: float, last: float, looks_taken: Array, num_steps: int, dtype: jnp.dtype) -> Array:
    """Cosine annealing `last + (first - last) (1 + cos(pi t / K)) / 2` at the t-th move, counted from 0.

    Args:
      first: the value at t = 0.
      last: the limit at t = K.
      looks_taken: `[B]` int32, `state.step` after the look that the move follows: t + 1.
      num_steps: K.
      dtype: of the result.

    Returns:
      `[B]`.
    """
    share = (looks_taken - 1).astype(dtype) / num_steps
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2
