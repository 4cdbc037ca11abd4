r"""Universal perturbations: one change that is applied to every image.

    delta <- P_eps(delta + step * direction(grad_delta sum_i min(loss(f(clip_{[0,1]}(x_i + delta)), y_i), bound)))

over mini-batches of a training set, then judged on held-out images by `fixed_perturbation`. Crafting
couples the examples of a batch through the one delta: it is no `Attack`, its batches run in lock-step
(sharded over devices if the arrays are), and the pool, whose examples must not know each other,
takes only the finished perturbation.

Contents: `Shared` (what is shared), `additive`, `UniversalState`, `UniversalBatch`, `begin_universal`,
`universal_step` (pure), `craft` (a loop over batches around the compiled step), `fixed_perturbation`.
A universal patch is `attacks.patch.shared_patch` in place of `additive`.

Example:

    batches = (UniversalBatch(rng.example_keys(0, b['index']), b['image'], b['label']) for b in loader)
    state = craft(additive(), victim, batches, key=jax.random.key(0), image_shape=(28, 28, 1), eps=8/255)
    result = run(fixed_perturbation(state.parameters), victim, keys, held_out, labels, eps=8/255)

References:
  Moosavi-Dezfooli et al., Universal Adversarial Perturbations, CVPR 2017. Shafahi et al., Universal
  Adversarial Training, AAAI 2020, arXiv 1811.11304 (ascent on mini-batches of the clipped loss).
"""
import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.attacks.sampling import worst_of
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array, Attack, Targets, Victim


class Shared(NamedTuple):
    """What all images share, as pure functions.

    Attributes:
      init: `(key, image_shape, dtype, eps) -> parameters`, an array.
      apply: `(parameters, images [B, *spatial, C], keys [B]) -> images`, inside the box.
      move: `(parameters, gradient, eps) -> parameters`, one step of ascent, inside its limits.
    """

    init: Callable[[Array, tuple[int, ...], jnp.dtype, Array], Array]
    apply: Callable[[Array, Array, Array], Array]
    move: Callable[[Array, Array, Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniversalState:
    """A universal perturbation being crafted.

    Attributes:
      parameters: the perturbation.
      step: scalar int32, the number of mini-batches seen.
      loss: scalar, the mean clipped loss on the last of them, before its step.
    """

    parameters: Array
    step: Array
    loss: Array


class UniversalBatch(NamedTuple):
    """One mini-batch; `mask` [B] bool is False on padding, None where there is none."""

    keys: Array
    images: Array | np.ndarray
    targets: Targets
    mask: Array | np.ndarray | None = None


def additive(*, norm: str = 'linf', relative_step_size: float = 0.1, start: str = 'zero') -> Shared:
    """One perturbation `[*spatial, C]` in the ball of radius eps, added to every image.

    Args:
      norm: 'linf' (steps along the sign), 'l2' (along the normalized gradient) or 'l1'.
      relative_step_size: step / eps, > 0 [ours].
      start: 'zero' (the papers') or 'ball' (random).

    Raises:
      ValueError: for a step size <= 0 or an unknown norm or start.
    """
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')
    if start not in ('zero', 'ball'):
        did_you_mean(start, ('zero', 'ball'), 'start')
    if relative_step_size <= 0:
        raise ValueError(f'relative_step_size = {relative_step_size} must be positive')

    def init(key: Array, image_shape: tuple[int, ...], dtype: jnp.dtype, eps: Array) -> Array:
        none = jnp.zeros((1, *image_shape), dtype)
        return none[0] if start == 'zero' else balls.random_start(key[None], none, eps[None], norm=norm)[0]

    def move(delta: Array, gradient: Array, eps: Array) -> Array:
        direction = balls.ascent_direction(gradient[None], norm=norm)[0]
        return balls.project((delta + relative_step_size * eps * direction)[None], eps[None], norm=norm)[0]

    return Shared(init, lambda delta, images, keys: balls.to_box(images + delta), move)


def begin_universal(shared: Shared, key: Array, image_shape: tuple[int, ...], *, eps: float | Array,
                    dtype: jnp.dtype = jnp.float32) -> UniversalState:
    """The state before the first mini-batch."""
    parameters = shared.init(key, image_shape, dtype, jnp.asarray(eps, dtype))
    return UniversalState(parameters, jnp.zeros((), jnp.int32), jnp.zeros((), dtype))


def universal_step(shared: Shared, victim: Victim, state: UniversalState, batch: UniversalBatch, *,
                   eps: float | Array, loss_bound: float = 9.0) -> UniversalState:
    """One mini-batch of ascent; pure, one forward and one backward pass per example.

    Args:
      shared: what is shared.
      victim: the model; its loss is climbed.
      state: from `begin_universal` or an earlier step.
      batch: where to climb. Keys are folded with the step, so that a second epoch draws anew.
      eps: the radius, a scalar; data, not compiled in.
      loss_bound: > 0, where an example's loss stops counting, or the images that have long been
        fooled would outweigh those that stand; 9 [2nd: the reference implementations' default].
    """
    keys = rng.fold(batch.keys, state.step)
    images = jnp.asarray(batch.images)
    real = jnp.ones(images.shape[0], bool) if batch.mask is None else jnp.asarray(batch.mask)

    def total(parameters: Array) -> Array:
        outputs = victim.forward(shared.apply(parameters, images, keys), keys)
        return jnp.sum(jnp.where(real, jnp.minimum(victim.loss(outputs, batch.targets), loss_bound), 0))

    loss, gradient = jax.value_and_grad(total)(state.parameters)
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
    parameters = shared.move(state.parameters, gradient, jnp.asarray(eps, state.parameters.dtype))
    mean = loss / jnp.maximum(real.sum(), 1)
    return UniversalState(parameters.astype(state.parameters.dtype), state.step + 1, mean.astype(state.loss.dtype))


def craft(shared: Shared, victim: Victim, batches: Iterable[UniversalBatch], *, key: Array,
          image_shape: tuple[int, ...], eps: float, loss_bound: float = 9.0,
          dtype: jnp.dtype = jnp.float32) -> UniversalState:
    """Crafts over an iterator of mini-batches of one shape, which decides the number of steps.

    The model's weights become constants of the compiled step; to pass them as arguments, compile
    `universal_step` with a victim made inside.

    Args:
      shared: `additive()` or `patch.shared_patch()`.
      victim: the model.
      batches: of training images, as many epochs as wanted; never of those it will be judged on.
      key: of the start.
      image_shape: `(*spatial, C)`.
      eps: the radius.
      loss_bound: see `universal_step`.
      dtype: of the perturbation.

    Raises:
      ValueError: for loss_bound <= 0 or no batch at all.
    """
    if loss_bound <= 0:
        raise ValueError(f'loss_bound = {loss_bound} must be positive')
    step = jax.jit(partial(universal_step, shared, victim, loss_bound=loss_bound))
    state = begin_universal(shared, key, image_shape, eps=eps, dtype=dtype)
    for batch in batches:
        state = step(state, batch, eps=jnp.asarray(eps, dtype))
    if not int(state.step):
        raise ValueError('a universal perturbation needs at least one batch')
    return state


def fixed_perturbation(delta: Array | np.ndarray, *, norm: str = 'linf') -> Attack:
    """Adds one given perturbation to every image, in one look: how a universal one is judged.

    Args:
      delta: `[*spatial, C]`.
      norm: of the ball of radius eps that `delta` is projected to, so that an evaluation at a smaller
        eps than it was crafted for stays in its ball. A larger eps changes nothing.

    Raises:
      ValueError: for an unknown norm; when run, for images of another shape than `delta`.
    """
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')

    def draw(keys: Array, images: Array, eps: Array, number: Array) -> Array:
        if images.shape[1:] != delta.shape:
            raise ValueError(f'a perturbation of shape {delta.shape} does not fit images {images.shape[1:]}')
        every = jnp.broadcast_to(jnp.asarray(delta, images.dtype), images.shape)
        return balls.to_box(images + balls.project(every, eps, norm=norm))

    return worst_of(draw, num_draws=1)
