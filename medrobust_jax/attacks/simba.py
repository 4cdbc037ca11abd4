r"""SimBA: a greedy walk along the vectors of an orthonormal basis, by scores alone.

    for q in basis, in random order without repetition:
      for s in (-1, +1):
        if loss(f(clip(x + d + s step q)), y) > loss(f(clip(x + d)), y):   d <- d + s step q, next q

With the cross-entropy as loss, `-log p_y`, the test is the published one: the true class's
probability falls. Since the basis is orthonormal, `||d||_2 <= sqrt(T) step` after T accepted
directions. `clip` is to the ball and the box.

Contents: `simba`.

Example:

    attack = simba(num_queries=5000, basis='dct', norm='linf')
    result = run(attack, victim, keys, images, labels, eps=8 / 255)
"""
from typing import NamedTuple

import jax.numpy as jnp

from medrobust_jax.attacks import coordinates, looks
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

_ORDER = 0x51BA  # keeps the keys of orders apart from those of passes and restarts


class _Walk(NamedTuple):
    """One example's inner arrays.

    `delta` is d; `trial` what it may become; `loss` the victim's loss at `delta`; `position` which vector
    of the order is on trial, -1 at the first look; `sign` its sign, 0 at the first look.
    """

    delta: Array
    trial: Array
    loss: Array
    position: Array
    sign: Array


def simba(*, num_queries: int = 5000, basis: str = 'dct', order: str | None = None, norm: str = 'l2',
          step_size: float = 0.2) -> Attack:
    """The simple black-box attack, one query per look.

    Accepts what raises the victim's loss, so it serves any task; `wrappers.with_loss` and
    `wrappers.targeted` apply. It goes on after the model is fooled, to a higher loss, unless the runner
    stops fooled examples, as the authors do.

    Args:
      num_queries: >= 1, forward passes per example in all, the first of them at the clean image; one per
        look, and no backward passes.
      basis: 'dct' (the discrete cosine basis of every channel) or 'pixel'.
      order: 'random'; for 'dct' also 'expanding', low frequencies first in growing blocks, the default
        there (28, 35, 42, ... of 224 pixels [code]), or 'diagonal', by the sum of frequencies. Each
        example draws its own order within these groups.
      norm: 'l2', 'linf' or 'l1'; the ball's radius is the knob 'eps'.
      step_size: > 0, in units of [0, 1] pixels times an L2 unit vector; .2 [code].

    Returns:
      The attack. An L2 eps of at least `sqrt(num_queries) * step_size` never binds, which is the
      published attack without a ball.

    Raises:
      ValueError: for an option out of range or unknown, or a pixel basis ordered by frequency.

    Differs from the paper in: the ball. For 'linf' the perturbation is clipped when it is applied,
    while d goes on unclipped (the authors' `linf_bound`); for the others d is projected. An order is
    drawn per example instead of per batch; once all D vectors have been tried, a new one is drawn.
    The second sign is tried only where the first failed, as in algorithm 1 and the authors' code for
    one image; their code for batches asks for both and takes the better, but counts as here.

    References:
      Guo et al., Simple Black-box Adversarial Attacks, ICML 2019, algorithm 1.
    """
    if num_queries < 1 or step_size <= 0:
        raise ValueError(f'simba needs num_queries >= 1 and step_size > 0, not {num_queries}, {step_size}')
    if basis not in coordinates.BASES:
        did_you_mean(basis, coordinates.BASES, 'basis')
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')
    chosen = order or ('expanding' if basis == 'dct' else 'random')
    if chosen not in coordinates.ORDERS:
        did_you_mean(chosen, coordinates.ORDERS, 'order')
    if basis == 'pixel' and chosen != 'random':
        raise ValueError(f"order '{chosen}' sorts frequencies, which the basis 'pixel' has not; use basis 'dct'")

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        batch = images.shape[0]
        walk = _Walk(jnp.zeros_like(images), jnp.zeros_like(images), jnp.full(batch, -jnp.inf, images.dtype),
                     jnp.full(batch, -1, jnp.int32), jnp.zeros(batch, jnp.int32))
        return looks.start_state(keys, images, knobs, walk)

    def trial(delta: Array, position: Array, sign: Array, state: AttackState) -> Array:
        shape, keys = delta.shape[1:], rng.fold(state.key, _ORDER)
        shells = coordinates.make_shells(shape, basis=basis, order=chosen)
        number = coordinates.vector_at(shells, keys, position)
        vector = coordinates.basis_vector(number, shape, basis=basis, dtype=delta.dtype)
        moved = delta + per_example(sign * step_size, delta).astype(delta.dtype) * vector
        return moved if norm == 'linf' else balls.project(moved, state.knobs['eps'], norm=norm)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        walk: _Walk = state.inner
        outputs = victim.forward(state.images, looks.pass_keys(state))
        loss = victim.loss(outputs, targets).astype(walk.loss.dtype)
        state = looks.record(state, loss, victim.acceptable(outputs, targets))
        better = loss > walk.loss
        again = ~better & (walk.sign == -1)  # the other sign of the same vector
        delta = jnp.where(per_example(better, images), walk.trial, walk.delta)
        position, sign = walk.position + ~again, jnp.where(again, 1, -1)
        following = trial(delta, position, sign, state)
        walk = _Walk(delta, following, jnp.where(better, loss, walk.loss), position, sign)
        applied = balls.project(following, state.knobs['eps'], norm=norm)
        return looks.move_to(state, balls.to_box(images + applied), walk)

    return Attack(init, step, num_queries - 1)  # the runner's last look is the last query
