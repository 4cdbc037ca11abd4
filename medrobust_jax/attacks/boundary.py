r"""The boundary attack: a minimum-norm walk along the decision boundary that sees decisions only.

From a fooling image b, at distance r = ||b - x||_2, one proposal is

    eta    = N(0, I),  made orthogonal to b - x,  scaled to length sigma r
    sphere = x + (b - x + eta) / sqrt(1 + sigma^2)             at distance r again
    b'     = sphere + (||sphere - x|| - (1 - epsilon) r) (x - sphere) / ||x - sphere||

both clipped to [0, 1]; b' replaces b where it fools and is nearer. sigma and epsilon follow the share
of sphere points and of proposals that fool: sigma and epsilon grow where more than .5 of the sphere
points do and shrink below .2; epsilon alone grows above .25 of the proposals and shrinks below .1.

Contents: `boundary_attack`, `proposals` (its geometry).

Example:

    attack = boundary_attack(num_queries=10000)
    result = run(attack, victim, keys, images, labels, eps=jnp.inf)
    distances = -result.loss                # where ~result.acceptable
"""
from typing import NamedTuple

import jax.numpy as jnp

from medrobust_jax.attacks import decisions, looks, nearest
from medrobust_jax.attacks.decisions import LATER, Track
from medrobust_jax.core import balls, rng
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

SPHERE, PROPOSAL = LATER, LATER + 1
START_TOLERANCE = 1e-3  # of the bisection between the clean image and the noise that fooled
CONVERGED = 1e-7  # epsilon below which an example ends
_NOISE = 0x424E44  # keeps the keys of proposals apart from those of passes, restarts and starts
_START = 0x424E53


class _Tally(NamedTuple):
    """How many of the looks of one kind fooled, since the last adaptation; `[B]` each."""

    fooled: Array
    count: Array


class _Walk(NamedTuple):
    """One example's inner arrays: its track, proposals made, step sizes and tallies."""

    track: Track
    proposals: Array
    sigma: Array
    epsilon: Array
    spheres: _Tally
    accepted: _Tally


def boundary_attack(*, num_queries: int = 10000, sphere_step: float = 0.01, source_step: float = 0.01,
                    adaptation: float = 1.5, check_every: int = 10, sphere_window: int = 10,
                    proposal_window: int = 30, max_starts: int = 100) -> Attack:
    """The boundary attack, one query per look, in L2.

    Uses the victim's criterion alone, so it serves any task. Minimum-norm: an image counts when it
    fools the model within the knob 'eps', which may be inf, and the recorded loss is minus the
    distance. For targeted attacks see `hopskipjump`: `wrappers.targeted` and the knob 'start_image'.

    Args:
      num_queries: >= 1, decisions per example in all, the first of them at the clean image. One
        forward pass per look and no backward pass; the runner's last look adds a pass and changes
        nothing.
      sphere_step: first sigma > 0; .01 [code of foolbox].
      source_step: first epsilon > 0; .01 [code of foolbox].
      adaptation: > 1, the factor by which both change; 1.5 [code of foolbox].
      check_every: >= 1; every so many proposals the sphere point is asked about too; 10 [code of
        foolbox].
      sphere_window: >= 1, sphere points per adaptation. Ours is 10, against the last 100 in foolbox,
        which then adapts every 1000 proposals at the earliest.
      proposal_window: >= 1, proposals per adaptation of epsilon; 30 [code of foolbox, which counts one
        in `check_every`].
      max_starts: >= 1, noise images tried before an example is given up; 100 [ours].

    Returns:
      The attack. Examples end by themselves when wrong from the start, without a start, converged, or
      out of queries. For restarts use the runner's (its keys differ), not `wrappers.restarts`.

    Raises:
      ValueError: for an option out of range.

    Differs from the paper in: the start is bisected towards the clean image first, as in foolbox;
    success is tallied in windows of fixed length that begin anew, so that step sizes adapt within a few
    hundred queries.

    References:
      Brendel, Rauber and Bethge, Decision-Based Adversarial Attacks, ICLR 2018, section 2.
    """
    if min(num_queries, check_every, sphere_window, proposal_window, max_starts) < 1:
        raise ValueError(f'boundary_attack needs num_queries, check_every, windows and max_starts >= 1, not '
                         f'{num_queries}, {check_every}, {sphere_window}, {proposal_window}, {max_starts}')
    if min(sphere_step, source_step) <= 0 or adaptation <= 1:
        raise ValueError(f'boundary_attack needs positive steps and adaptation > 1, not {sphere_step}, '
                         f'{source_step}, {adaptation}')

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        zero, count = jnp.zeros(images.shape[0], images.dtype), jnp.zeros(images.shape[0], jnp.int32)
        walk = _Walk(decisions.first_track(images), count, zero + sphere_step, zero + source_step,
                     _Tally(count, count), _Tally(count, count))
        return looks.start_state(keys, images, knobs, walk)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        walk: _Walk = state.inner
        phase = walk.track.phase
        state, fooled = decisions.query(victim, images, targets, state, norm='l2')
        ends = decisions.exhausted(walk.track, state, fooled, num_queries=num_queries, max_starts=max_starts)
        track, arrived = decisions.approach(walk.track, state, fooled, images, tolerance=START_TOLERANCE,
                                            norm='l2')
        radius = balls.norm_of(walk.track.base - images, norm='l2')
        nearer = (phase == PROPOSAL) & fooled & (balls.norm_of(state.images - images, norm='l2') < radius)
        base = jnp.where(per_example(nearer, images), state.images, track.base)
        walk = _adapt(walk._replace(track=track._replace(base=base)), phase, fooled)
        made = walk.proposals + (phase == PROPOSAL)
        later = jnp.where((phase != SPHERE) & (made % check_every == 0), SPHERE, PROPOSAL)
        phase = jnp.where((phase >= LATER) | arrived, later, track.phase)
        walk = walk._replace(proposals=made, track=walk.track._replace(phase=phase))
        state = looks.move_to(state, _next_image(walk, state, images), walk)
        return nearest.finish(state, ends | (walk.epsilon < CONVERGED))

    def _adapt(walk: _Walk, phase: Array, fooled: Array) -> _Walk:
        spheres, grow, shrink = _tally(walk.spheres, phase == SPHERE, fooled, sphere_window, low=.2, high=.5)
        factor = jnp.where(grow, adaptation, jnp.where(shrink, 1 / adaptation, 1)).astype(walk.sigma.dtype)
        accepted, grow, shrink = _tally(walk.accepted, phase == PROPOSAL, fooled, proposal_window, low=.1,
                                        high=.25)
        own = jnp.where(grow, adaptation, jnp.where(shrink, 1 / adaptation, 1)).astype(walk.sigma.dtype)
        return walk._replace(spheres=spheres, accepted=accepted, sigma=walk.sigma * factor,
                             epsilon=jnp.minimum(walk.epsilon * factor * own, 1))

    return Attack(init, step, num_queries)


def _tally(tally: _Tally, counts: Array, fooled: Array, window: int, *, low: float, high: float,
           ) -> tuple[_Tally, Array, Array]:
    """The tally after a look, and where a full window calls for larger or for smaller steps."""
    tally = _Tally(tally.fooled + (counts & fooled), tally.count + counts)
    full = tally.count >= window
    share = tally.fooled / jnp.maximum(tally.count, 1)
    begun = _Tally(jnp.where(full, 0, tally.fooled), jnp.where(full, 0, tally.count))
    return begun, full & (share > high), full & (share < low)


def _next_image(walk: _Walk, state: AttackState, images: Array) -> Array:
    """What to ask about next, in any phase. A sphere point and its proposal come from one draw."""
    starts = rng.uniform(rng.fold(rng.fold(state.key, _START), state.step), images.shape[1:])
    opening = decisions.opening_image(walk.track, state, images, starts.astype(images.dtype), norm='l2')
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    noise = rng.normal(rng.fold(rng.fold(state.key, _NOISE), walk.proposals), images.shape[1:], dtype)
    sphere, proposal = proposals(images, walk.track.base, noise.astype(images.dtype), walk.sigma, walk.epsilon)
    phase = per_example(walk.track.phase, images)
    return jnp.where(phase == SPHERE, sphere, jnp.where(phase == PROPOSAL, proposal, opening))


def proposals(images: Array, base: Array, noise: Array, sigma: Array, epsilon: Array) -> tuple[Array, Array]:
    """The point on the sphere and, from it, the one nearer to `images`.

    Args:
      images: x, `[B, *spatial, C]`.
      base: b, likewise.
      noise: N(0, 1), likewise.
      sigma: `[B]`, the length of the tangential part over the distance.
      epsilon: `[B]` in [0, 1], the share of the distance to go towards x.

    Returns:
      Both `[B, *spatial, C]`, in the box.
    """
    away = base - images
    radius = balls.norm_of(away, norm='l2')
    axes = tuple(range(1, images.ndim))
    unit = balls.ascent_direction(away, norm='l2')
    tangent = noise - unit * jnp.sum(unit * noise, axis=axes, keepdims=True)
    tangent = per_example(sigma * radius, images) * balls.ascent_direction(tangent, norm='l2')
    sphere = balls.to_box(images + (away + tangent) / per_example(jnp.sqrt(1 + sigma**2), images))
    left = balls.norm_of(sphere - images, norm='l2')
    # The box may have brought the sphere point nearer already.
    share = jnp.minimum(1, (1 - epsilon) * radius / jnp.where(left > 0, left, 1))
    return sphere, balls.to_box(images + per_example(share, images) * (sphere - images))
