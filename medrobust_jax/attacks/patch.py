r"""Adversarial patches: anything at all, in a small window of the image.

    x' = (1 - m) x + m p,      p in [0, 1],      m a window that covers at most a share eps of the image

The knob 'eps' is that share (of the area, or of a volume) and bounds no pixel: the norm of these
attacks is called 'patch', and `changed_share` measures it. The window has the image's proportions;
that of a smaller eps lies in that of a larger, at the same key.

Contents: `patch` (optimized per image), `shared_patch` (one for all, by `universal.craft`),
`fixed_patch` (judges one), `changed_share`, `NORM`.

Example:

    result = run(patch(num_steps=50), victim, keys, images, labels, eps=.05)
    state = craft(shared_patch(size=(7, 7)), victim, batches, key=key, image_shape=(28, 28, 1), eps=.07)
    result = run(fixed_patch(state.parameters, num_draws=10), victim, keys, held_out, labels, eps=.07)

References:
  Brown et al., Adversarial Patch, NIPS 2017 workshop, arXiv 1712.09665. Karmon et al., LaVAN:
  Localized and Visible Adversarial Noise, ICML 2018 (a patch of its own for every image).
"""
import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.attacks import directions, looks
from medrobust_jax.attacks.sampling import worst_of
from medrobust_jax.attacks.universal import Shared
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

NORM = 'patch'
_PLACES = 0x97AC  # keeps the keys of places apart from those of passes and restarts

Location = str | tuple[float, ...]  # 'random', 'center', or a place per axis in [0, 1]


def patch(*, num_steps: int = 50, relative_step_size: float | None = None, location: Location = 'random',
          direction: directions.Direction | None = None) -> Attack:
    """A patch optimized for each image by projected gradient ascent, from uniform noise.

        p_{t+1} = clip_{[0,1]}(p_t + step * sign(grad_p loss(f(x'_t), y)))

    The window has floor(eps^(1/n) * size) pixels along each of the n axes, so eps 0, and any eps too
    small for one pixel, changes nothing.

    Args:
      num_steps: K >= 1, one forward and one backward pass each.
      relative_step_size: the step in units of the pixel range, > 0; default 2.5 / K [ours].
      location: 'random' (uniform, drawn once from the example's key, and anew in every restart),
        'center', or one number in [0, 1] per axis: 0 is the first place that fits, 1 the last.
      direction: how gradients become directions; default their sign.

    Raises:
      ValueError: for num_steps < 1, a step size <= 0 or an unknown location.

    Differs from the papers in: the location is drawn and not searched for; no targets, printing or
    transforms (see `wrappers`); signed steps.
    """
    if num_steps < 1:
        raise ValueError(f'num_steps = {num_steps} must be at least 1')
    if relative_step_size is not None and relative_step_size <= 0:
        raise ValueError(f'relative_step_size = {relative_step_size} must be positive')
    _check_location(location)
    length = 2.5 / num_steps if relative_step_size is None else relative_step_size
    rule = directions.steepest(norm='linf') if direction is None else direction

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        values = rng.uniform(keys, images.shape[1:]).astype(images.dtype)
        first = jnp.where(_window(images, knobs['eps'], keys, location), values, images)
        return looks.start_state(keys, first, knobs, rule.init(images))

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs, loss, gradient = looks.loss_and_gradient(victim, state, targets)
        state = looks.record(state, loss, victim.acceptable(outputs, targets))
        inside = _window(images, state.knobs['eps'], state.key, location)
        room = balls.room_of(state.images, jnp.full_like(state.knobs['eps'], length))
        move, inner = rule.update(jnp.where(inside, gradient, 0), state.inner, state.step, room)
        moved = jnp.where(inside, balls.to_box(state.images + length * move), images)
        return looks.move_to(state, moved, inner)

    return Attack(init, step, num_steps)


def shared_patch(*, size: tuple[int, ...], location: Location = 'random', step_size: float = 0.05) -> Shared:
    """One patch `[*size, C]` in [0, 1] for all images, for `universal.craft`; it starts as noise.

    Args:
      size: pixels along each spatial axis. The eps given to `craft` has no meaning here.
      location: as `patch`; 'random' draws a place per image and step, so that the patch works anywhere.
      step_size: of the signed steps, in units of the pixel range, > 0 [ours].

    Raises:
      ValueError: for a size < 1, a step size <= 0 or an unknown location.
    """
    _check_location(location)
    if min(size) < 1 or step_size <= 0:
        raise ValueError(f'shared_patch needs sizes >= 1 and step_size > 0, not {size} and {step_size}')

    def init(key: Array, image_shape: tuple[int, ...], dtype: jnp.dtype, eps: Array) -> Array:
        return jax.random.uniform(key, (*size, image_shape[-1]), dtype)

    return Shared(init, lambda values, images, keys: _paste(values, images, keys, location),
                  lambda values, gradient, eps: balls.to_box(values + step_size * jnp.sign(gradient)))


def fixed_patch(values: Array | np.ndarray, *, location: Location = 'random', num_draws: int = 1) -> Attack:
    """Pastes one given patch `[*size, C]`; the worst of `num_draws` places.

    An image whose eps is smaller than the patch's share of it stays as it is.
    """
    _check_location(location)

    def draw(keys: Array, images: Array, eps: Array, number: Array) -> Array:
        share = np.prod(values.shape[:-1]) / np.prod(images.shape[1:-1])
        pasted = _paste(jnp.asarray(values, images.dtype), images, keys, location)
        return jnp.where(per_example(eps * (1 + 1e-5) >= share, images), pasted, images)

    return worst_of(draw, num_draws=num_draws if location == 'random' else min(num_draws, 1))


def changed_share(images: Array, clean: Array) -> Array:
    """The share `[B]` of pixels (in any channel) in which `images` differ from `clean`, `[B, *spatial, C]`."""
    return jnp.any(images != clean, axis=-1).reshape(len(images), -1).mean(axis=1)


def _check_location(location: Location) -> None:
    if isinstance(location, str):
        if location not in ('random', 'center'):
            did_you_mean(location, ('random', 'center'), 'location')
    elif not all(0 <= place <= 1 for place in location):
        raise ValueError(f'location = {location} must be in [0, 1] along every axis')


def _places(images: Array, keys: Array, location: Location) -> Array:
    """The place along each axis, `[B, n]` in [0, 1]."""
    axes = images.ndim - 2
    if location == 'random':
        return rng.uniform(rng.fold(keys, _PLACES), (axes,))
    place = (.5,) * axes if isinstance(location, str) else location
    if len(place) != axes:
        raise ValueError(f'location = {location} has {len(place)} numbers for images of shape {images.shape[1:]}')
    return jnp.broadcast_to(jnp.asarray(place, jnp.float32), (images.shape[0], axes))


def _first_pixels(places: Array, sides: Array, shape: tuple[int, ...]) -> Array:
    """Where windows of `sides` `[B or 1, n]` begin, `[B, n]` int32; windows nest as they grow."""
    free = jnp.asarray(shape) - sides
    return jnp.clip(jnp.floor(places * (free + 1)), 0, free).astype(jnp.int32)


def _window(images: Array, share: Array, keys: Array, location: Location) -> Array:
    """Which pixels the patch covers, `[B, *spatial, 1]` bool."""
    spatial = images.shape[1:-1]
    part = jnp.clip(share.astype(jnp.float32), 0, 1) ** (1 / len(spatial))
    sides = jnp.floor((part[:, None] + 1e-6) * jnp.asarray(spatial))  # whole in spite of rounding
    sides = jnp.where(part[:, None] > 0, jnp.minimum(sides, jnp.asarray(spatial)), 0)
    first = _first_pixels(_places(images, keys, location), sides, spatial)
    inside = jnp.ones((images.shape[0], *(1 for _ in spatial), 1), bool)
    for axis, size in enumerate(spatial):
        position = jnp.arange(size).reshape([-1 if a == axis else 1 for a in range(len(spatial))] + [1])
        begin, side = (per_example(values[:, axis], images) for values in (first, sides))
        inside = inside & (position >= begin) & (position < begin + side)
    return inside


def _paste(values: Array, images: Array, keys: Array, location: Location) -> Array:
    spatial, size = images.shape[1:-1], values.shape[:-1]
    if len(size) != len(spatial) or any(s > n for s, n in zip(size, spatial, strict=False)):
        raise ValueError(f'a patch of shape {values.shape} does not fit images of shape {images.shape[1:]}')
    first = _first_pixels(_places(images, keys, location), jnp.asarray(size)[None], spatial)
    first = jnp.pad(first, ((0, 0), (0, 1)))
    return jax.vmap(lambda image, start: jax.lax.dynamic_update_slice(image, values.astype(image.dtype), start)
                    )(images, first)
