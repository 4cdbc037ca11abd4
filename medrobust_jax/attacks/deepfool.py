r"""DeepFool, the nearest boundary of the linearized model, again and again.

    f_k     = z_k(x_t) - z_y(x_t),   w_k = grad f_k           for the classes k ranked highest at x
    l       = argmin_k |f_k| / ||w_k||_q                      (1/p + 1/q = 1)
    r_t     = (|f_l| / ||w_l||_q + extra) u(w_l),             u the unit step of the norm along w_l
    x_{t+1} = clip_{[0,1]}(x + (1 + overshoot) sum_{s<=t} r_s)

until the prediction is wrong.

Contents: `deepfool`.

Example:

    result = run(deepfool(norm='linf'), victim, keys, images, labels, eps=jnp.inf)
    distances = -result.loss                  # of the images that fool: ~result.acceptable
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.attacks import looks, nearest
from medrobust_jax.attacks.wrappers import with_loss
from medrobust_jax.core import balls
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim
from medrobust_jax.losses.classification import margin

_DUAL = {'linf': 'l1', 'l2': 'l2'}


def deepfool(*, num_steps: int = 50, norm: str = 'l2', overshoot: float = 0.02, num_classes: int = 10,
             extra: float = 1e-4) -> Attack:
    """DeepFool in L2 or Linf, for single-label classification.

    Args:
      num_steps: K >= 1, linearizations at most; 50 [code].
      norm: 'l2' or 'linf'.
      overshoot: >= 0, how far behind the boundary to go, relative to the perturbation; the paper's .02.
      num_classes: >= 2, how many of the clean image's highest-ranked classes take part, the true one
        included; 10 [code].
      extra: >= 0, added to the length of every step in units of [0, 1] pixels, or images could
        settle on the boundary; 1e-4 [code], not in the paper.

    Returns:
      The attack. A step costs a forward pass and `num_classes - 1` backward passes, and an example
      leaves at its first fooling image. The knob 'eps' is the largest distance that counts,
      infinite for the minimum-norm result. The recorded loss is minus the distance where the image
      fools. Under `wrappers.targeted` a step goes to the farthest of the boundaries between the
      wanted class and the classes above it.

    Raises:
      ValueError: for an option out of range, an unknown norm, or outputs that are not logits `[B, C]`
        with C >= 2.

    Differs from the paper in: the box; the overshoot applies to every iterate, as in the authors'
    code, and not to the last one alone; targets.

    References:
      Moosavi-Dezfooli et al., DeepFool: a Simple and Accurate Method to Fool Deep Neural Networks,
      CVPR 2016, algorithm 2 and section 3.3.
    """
    if norm not in _DUAL:
        did_you_mean(norm, _DUAL, 'norm of deepfool')
    if num_steps < 1 or num_classes < 2 or overshoot < 0 or extra < 0:
        raise ValueError(f'deepfool needs num_steps >= 1, num_classes >= 2, overshoot >= 0 and extra >= 0, '
                         f'not {num_steps}, {num_classes}, {overshoot}, {extra}')

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        outputs = jax.eval_shape(victim.forward, images, keys)
        if not hasattr(outputs, 'shape') or len(outputs.shape) != 2 or outputs.shape[1] < 2:
            raise ValueError(f'deepfool needs logits [batch, classes] of 2 classes or more, not {outputs}')
        state = nearest.begin(keys, images, knobs, norm=norm)
        rivals = jnp.zeros((len(images), min(num_classes, outputs.shape[1]) - 1), jnp.int32)
        return state.replace(inner={'total': (state.images - images) / (1 + overshoot), 'rivals': rivals})

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        keys = looks.pass_keys(state)
        logits, pull = jax.vjp(lambda x: victim.forward(x, keys), state.images)
        wrong = ~victim.acceptable(logits, targets)
        truth = jax.nn.one_hot(targets, logits.shape[1], dtype=logits.dtype)
        aimed = ~victim.acceptable(truth, targets)  # `targets` are wanted: that they win is what must not be
        ranked, kept = _rivals(logits, targets, state), state.inner['rivals']
        rivals = jnp.where((aimed | (state.step == 0))[:, None], ranked, kept)
        state, _ = nearest.record(state, images, victim.loss(logits, targets), wrong, norm=norm)
        move = _move(logits, pull, truth, rivals, aimed, norm=norm, extra=extra)
        total = state.inner['total'] + move
        moved = balls.to_box(images + (1 + overshoot) * total)
        state = looks.move_to(state, moved, {'total': total, 'rivals': rivals})
        return nearest.finish(state, wrong | (state.step >= num_steps))

    return with_loss(Attack(init, step, num_steps), margin)


def _rivals(logits: Array, targets: Array, state: AttackState) -> Array:
    """The classes other than `targets` with the highest logits, `[B, num_rivals]`."""
    own = jnp.arange(logits.shape[1]) == targets[:, None]
    order = jnp.argsort(jnp.where(own, jnp.inf, -logits), axis=1)
    return order[:, :state.inner['rivals'].shape[1]].astype(jnp.int32)


def _move(logits: Array, pull: Callable[[Array], tuple[Array]], truth: Array, rivals: Array, aimed: Array, *,
          norm: str, extra: float) -> Array:
    """The step `[B, ...]` to the nearest boundary, or where `aimed` to the farthest that is not crossed yet."""
    sign = jnp.where(aimed, -1, 1).astype(logits.dtype)[:, None]
    others = jax.nn.one_hot(rivals.T, logits.shape[1], dtype=logits.dtype)
    pairs = sign * (others - truth)  # [R, B, C]: each row's product with the logits must become positive
    gaps = jnp.sum(pairs * logits, axis=-1)
    normals = jax.vmap(lambda pair: pull(pair)[0])(pairs)
    normals = jnp.where(jnp.isfinite(normals), normals, 0)
    slopes = jax.vmap(lambda normal: balls.norm_of(normal, norm=_DUAL[norm]))(normals)
    flat = slopes == 0
    distances = jnp.abs(gaps) / jnp.where(flat, 1, slopes)
    nearest_one = jnp.argmin(jnp.where(flat, jnp.inf, distances), axis=0)
    farthest_one = jnp.argmax(jnp.where(flat | (gaps > 0), -1, distances), axis=0)
    chosen = jnp.where(aimed, farthest_one, nearest_one)
    rows = jnp.arange(len(logits))
    length = (distances[chosen, rows] + extra).astype(normals.dtype)
    normal = normals[chosen, rows]
    return per_example(length, normal) * balls.ascent_direction(normal, norm=norm)
