r"""What decision-based attacks share: a recorded query, a fooling start, and the bisection to the boundary.

Such an attack sees only whether an output is still acceptable. It is a machine with one query per
step, and every example has its own phase:

    CLEAN   the image itself: an example that is wrong without an attack ends here, at distance 0
    START   uniform noise (or the knob 'start_image', tried first) until the model is fooled
    SEARCH  bisection between the clean image x and the fooling base b, on the path
                path(s) = x + s (b - x)                               for 'l2'
                path(s) = x + clip(b - x, -s r, s r),  r = |b - x|    for 'linf'
    LATER   what follows is the attack's own

Contents: `CLEAN`, `START`, `SEARCH`, `LATER`, `Track`, `first_track`, `query`, `approach`, `between`,
`opening_image`, `exhausted`.

Example, the body of a step:

    state, fooled = query(victim, images, targets, state, norm='l2')
    track, arrived = approach(state.inner, state, fooled, images, tolerance=1e-3, norm='l2')
    ...
    return nearest.finish(looks.move_to(state, moved, track), ended)
"""
from typing import NamedTuple

import jax.numpy as jnp

from medrobust_jax.attacks import looks, nearest
from medrobust_jax.core import balls
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, AttackState, Targets, Victim

CLEAN, START, SEARCH, LATER = range(4)


class Track(NamedTuple):
    """Where an example stands.

    Attributes:
      phase: `[B]` int32.
      base: `[B, *spatial, C]`, the image that fools the model and from which the attack goes on.
      low: `[B]`, the largest share of the path known to be acceptable; 0 when a search begins.
      high: `[B]`, the smallest share known to fool; 1 when a search begins.
    """

    phase: Array
    base: Array
    low: Array
    high: Array


def first_track(images: Array) -> Track:
    """The track before the first query."""
    zeros = jnp.zeros(images.shape[0], images.dtype)
    return Track(jnp.full(images.shape[0], CLEAN, jnp.int32), images, zeros, zeros + 1)


def query(victim: Victim, images: Array, targets: Targets, state: AttackState, *,
          norm: str) -> tuple[AttackState, Array]:
    """Asks for one decision at `state.images`, and records it by its distance to `images`.

    An image counts as found when the model is fooled and the distance is at most the knob 'eps',
    which may be inf. Its loss is minus the distance, so that the nearest is kept; every other image has
    minus the largest distance in the box, minus its own, so that where nothing was found the clean
    image stays. The victim's loss is not asked for.

    Returns:
      The state after the record; `[B]` bool, whether the model is fooled at any distance.
    """
    outputs = victim.forward(state.images, looks.pass_keys(state))
    fooled = ~victim.acceptable(outputs, targets)
    distance = balls.norm_of(state.images - images, norm=norm)
    found = fooled & (distance <= state.knobs['eps'])
    otherwise = -nearest.farthest(images, norm=norm) - distance
    return looks.record(state, jnp.where(found, -distance, otherwise), ~found), fooled


def approach(track: Track, state: AttackState, fooled: Array, images: Array, *, tolerance: float, norm: str,
             ) -> tuple[Track, Array]:
    """Takes note of a decision in the phases before LATER.

    Args:
      track: at the query.
      state: after the query, with `state.images` the image that was asked about.
      fooled: `[B]`, the decision.
      images: the clean images.
      tolerance: the share of the path at which a search ends.
      norm: 'linf' or 'l2', which path.

    Returns:
      The track after the decision, in phase LATER with `base` at the boundary where a search ended;
      `[B]` bool, where it did.
    """
    started = (track.phase == START) & fooled
    searching = track.phase == SEARCH
    middle = (track.low + track.high) / 2
    low = jnp.where(started, 0, jnp.where(searching & ~fooled, middle, track.low))
    high = jnp.where(started, 1, jnp.where(searching & fooled, middle, track.high))
    arrived = searching & (high - low <= tolerance)
    base = jnp.where(per_example(started, images), state.images, track.base)
    base = jnp.where(per_example(arrived, images), between(images, base, high, norm=norm), base)
    phase = jnp.where(track.phase == CLEAN, START, track.phase)
    phase = jnp.where(started, SEARCH, jnp.where(arrived, LATER, phase))
    return Track(phase, base, low, high), arrived


def between(images: Array, base: Array, share: Array, *, norm: str) -> Array:
    """The point at `share` `[B]` in [0, 1] of the path from `images` to `base`."""
    difference, share = base - images, per_example(share, images)
    if norm == 'linf':
        radius = share * per_example(balls.norm_of(difference, norm='linf'), images)
        moved = jnp.clip(difference, -radius, radius)
    else:
        moved = share * difference
    # At share 1 exactly the base, which rounding could otherwise carry back over the boundary.
    return jnp.where(share == 1, base, balls.to_box(images + moved))


def opening_image(track: Track, state: AttackState, images: Array, noise: Array, *, norm: str) -> Array:
    """What to ask about next in the phases START and SEARCH.

    Args:
      track: after `approach`.
      state: after the query; the knob 'start_image' `[B, *spatial, C]`, if there is one, comes first.
      images: the clean images.
      noise: `[B, *spatial, C]`, U(0, 1).
      norm: which path.
    """
    given = state.knobs.get('start_image')
    start = noise if given is None else jnp.where(per_example(state.step <= 1, images), given, noise)
    middle = between(images, track.base, (track.low + track.high) / 2, norm=norm)
    return jnp.where(per_example(track.phase == START, images), start, middle)


def exhausted(track: Track, state: AttackState, fooled: Array, *, num_queries: int, max_starts: int) -> Array:
    """`[B]` bool: no start found among `max_starts`, or no query left of `num_queries`.

    Args:
      track: at the query, before `approach`.
      state: after the query.
      fooled: the decision.
      num_queries: in all.
      max_starts: images tried in the phase START.
    """
    hopeless = (track.phase == START) & ~fooled & (state.step > max_starts)
    return hopeless | (state.step >= num_queries)
