r"""HopSkipJump: a minimum-norm attack that sees decisions only.

With phi(x') = 1 where the model is fooled and -1 where it is not, and d the number of entries, it
repeats from a point x_b on the boundary, j = 1, 2, ...:

    u_i   = unit noise,  n_j = B0 sqrt(j) of them,  as far as the box lets x_b + delta_j u_i go
    g     = sum_i (phi(x_b + delta_j u_i) - mean phi) u_i        (the mean of u_i where all phi agree)
    v     = g / ||g||_2 for 'l2',  sign g for 'linf'
    s     = ||x_b - x|| / sqrt(j),  halved until x_b + s v fools
    x_b   = the boundary between x and x_b + s v, by bisection

    delta_1 = .1,  later gamma ||x_b + s v - x|| / d;     bisection to gamma / d^1.5 (l2), gamma / d^2 (linf)

Contents: `hopskipjump`.

Example:

    attack = hopskipjump(num_queries=5000, norm='l2')
    result = run(attack, victim, keys, images, labels, eps=jnp.inf)
    distances = -result.loss                # where ~result.acceptable
"""
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medrobust_jax.attacks import decisions, looks, nearest
from medrobust_jax.attacks.decisions import LATER, SEARCH, Track
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

PROBE, STEP = LATER, LATER + 1
NORMS = ('linf', 'l2')
_NOISE = 0x4853  # keeps the keys of noise apart from those of passes and restarts


class _Hop(NamedTuple):
    """One example's inner arrays.

    `toward` is the sum of phi_i u_i while probing and the direction v while stepping; `drift` the
    sum of u_i; `votes` that of phi_i, `count` their number; `round` is j; `delta` the probes' radius;
    `length` is s.
    """

    track: Track
    toward: Array
    drift: Array
    votes: Array
    count: Array
    round: Array
    delta: Array
    length: Array


def hopskipjump(*, num_queries: int = 5000, norm: str = 'l2', first_samples: int = 100, max_samples: int = 10000,
                gamma: float = 1.0, max_starts: int = 100) -> Attack:
    """HopSkipJump, one query per look.

    Uses the victim's criterion alone, so it serves any task, models without gradients included.
    Minimum-norm: an image counts when it fools the model within the knob 'eps', which may be inf, and
    the recorded loss is minus the distance.

    Targeted: `wrappers.targeted(hopskipjump(...))` with the knob 'start_image' `[B, *spatial, C]`, an
    image per example that the model gives the target class; noise rarely meets a target. The knob
    also serves untargeted attacks on models that call all noise by the true class.

    Args:
      num_queries: >= 1, decisions per example in all, the first of them at the clean image. One
        forward pass per look and no backward pass; the runner's last look adds a pass and changes
        nothing.
      norm: 'l2' or 'linf'.
      first_samples: B0 >= 1, probes of the first round; 100 [code].
      max_samples: at most so many per round; 10000 [code]. Equal to `first_samples`: always as many.
      gamma: > 0, scales the bisection's tolerance and the probes' radius; 1 [code].
      max_starts: >= 1, noise images tried before an example is given up; 100 [ours; the authors'
        10000 would be the whole budget].

    Returns:
      The attack. Examples end by themselves when wrong from the start, without a start, or out of
      queries. For restarts use the runner's (its keys differ), not `wrappers.restarts`.

    Raises:
      ValueError: for an option out of range or an unknown norm.

    Differs from the paper in: for 'linf' the start's bisection runs on the clipped path at once,
    without one along the blend before it; tolerance and probe radius stay above what the images'
    dtype resolves (gamma / d^1.5 does not in float32 beyond some 10^4 entries); queries, not rounds,
    are the budget.

    References:
      Chen, Jordan and Wainwright, HopSkipJumpAttack: A Query-Efficient Decision-Based Attack, IEEE
      S&P 2020, algorithms 1 and 2; constants from the authors' code.
    """
    if norm not in NORMS:
        did_you_mean(norm, NORMS, 'norm of hopskipjump')
    if min(num_queries, first_samples, max_starts) < 1 or max_samples < first_samples or gamma <= 0:
        raise ValueError(f'hopskipjump needs num_queries, first_samples, max_starts >= 1, max_samples >= '
                         f'first_samples and gamma > 0, not {num_queries}, {first_samples}, {max_starts}, '
                         f'{max_samples}, {gamma}')

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        count, zero = jnp.zeros(images.shape[0], jnp.int32), jnp.zeros(images.shape[0], images.dtype)
        still = jnp.zeros_like(images)
        hop = _Hop(decisions.first_track(images), still, still, zero, count, count, zero + 0.1, zero)
        return looks.start_state(keys, images, knobs, hop)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        size, precision = images[0].size, float(jnp.finfo(images.dtype).eps)
        tolerance = max(gamma / size ** (1.5 if norm == 'l2' else 2), 4 * precision)
        least = 32 * precision * math.sqrt(size)
        old = state.inner
        state, fooled = decisions.query(victim, images, targets, state, norm=norm)
        ends = decisions.exhausted(old.track, state, fooled, num_queries=num_queries, max_starts=max_starts)
        track, arrived = decisions.approach(old.track, state, fooled, images, tolerance=tolerance, norm=norm)
        hop = _count_probe(old._replace(track=track), old.track.phase == PROBE, state, fooled)
        reach = balls.norm_of(state.images - images, norm=norm)
        hop = _judge_step(hop, old.track.phase == STEP, state, fooled, jnp.maximum(gamma * reach / size, least))
        hop = _new_round(hop, arrived)
        samples = jnp.floor(first_samples * jnp.sqrt(hop.round.astype(jnp.float32)))
        full = (hop.track.phase == PROBE) & (hop.count >= jnp.minimum(samples, max_samples))
        hop = _turn(hop, full, balls.norm_of(hop.track.base - images, norm=norm), norm)
        state = looks.move_to(state, _next_image(hop, state, images, norm), hop)
        return nearest.finish(state, ends)

    return Attack(init, step, num_queries)


def _count_probe(hop: _Hop, probing: Array, state: AttackState, fooled: Array) -> _Hop:
    """Adds a probe's vote, along the way that the box left it."""
    vote = jnp.where(fooled, 1, -1).astype(hop.votes.dtype)
    way = jnp.where(per_example(probing, state.images), state.images - hop.track.base, 0)
    return hop._replace(toward=hop.toward + per_example(vote, way) * way, drift=hop.drift + way,
                        votes=hop.votes + jnp.where(probing, vote, 0), count=hop.count + probing)


def _judge_step(hop: _Hop, stepping: Array, state: AttackState, fooled: Array, delta: Array) -> _Hop:
    """A step that fools begins a search from where it led; another is halved."""
    landed = stepping & fooled
    base = jnp.where(per_example(landed, state.images), state.images, hop.track.base)
    track = Track(jnp.where(landed, SEARCH, hop.track.phase), base, jnp.where(landed, 0, hop.track.low),
                  jnp.where(landed, 1, hop.track.high))
    return hop._replace(track=track, delta=jnp.where(landed, delta, hop.delta),
                        length=jnp.where(stepping & ~fooled, hop.length / 2, hop.length))


def _new_round(hop: _Hop, arrived: Array) -> _Hop:
    """At the boundary: nothing has been probed yet."""
    still = per_example(arrived, hop.drift)
    return hop._replace(round=hop.round + arrived, count=jnp.where(arrived, 0, hop.count),
                        votes=jnp.where(arrived, 0, hop.votes), drift=jnp.where(still, 0, hop.drift),
                        toward=jnp.where(still, 0, hop.toward))


def _turn(hop: _Hop, full: Array, radius: Array, norm: str) -> _Hop:
    """From the probes' votes to a direction and a first step length, where all probes are in."""
    mean = hop.votes / jnp.maximum(hop.count, 1)
    # Where all agree the difference from the mean vote is zero, and the vote itself stands.
    mean = jnp.where(jnp.abs(mean) == 1, 0, mean)
    way = balls.ascent_direction(hop.toward - per_example(mean, hop.drift) * hop.drift, norm=norm)
    rounds = jnp.maximum(hop.round, 1).astype(radius.dtype)
    phase = jnp.where(full, STEP, hop.track.phase)
    return hop._replace(track=hop.track._replace(phase=phase),
                        toward=jnp.where(per_example(full, way), way, hop.toward),
                        length=jnp.where(full, radius / jnp.sqrt(rounds), hop.length))


def _next_image(hop: _Hop, state: AttackState, images: Array, norm: str) -> Array:
    """What to ask about next, in any phase. One draw serves the starts and the probes."""
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    below_one = 1 - float(jnp.finfo(dtype).epsneg)
    draw = rng.uniform(rng.fold(rng.fold(state.key, _NOISE), state.step), images.shape[1:], -below_one, 1.0, dtype)
    noise = jax.lax.erf_inv(draw) if norm == 'l2' else draw  # a normal variable, up to its scale
    noise = (noise / per_example(balls.norm_of(noise, norm='l2'), noise)).astype(images.dtype)
    opening = decisions.opening_image(hop.track, state, images, ((draw + 1) / 2).astype(images.dtype), norm=norm)
    base, phase = hop.track.base, per_example(hop.track.phase, images)
    probe = balls.to_box(base + per_example(hop.delta, images) * noise)
    stepped = balls.to_box(base + per_example(hop.length, images) * hop.toward)
    return jnp.where(phase == PROBE, probe, jnp.where(phase == STEP, stepped, opening))
