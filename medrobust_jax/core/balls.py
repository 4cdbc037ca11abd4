r"""Norm balls and the pixel box: where a perturbation may live and which way is up.

Contents: `norm_of`, `project`, `ascent_direction`, `room_of`, `random_start`, `to_box`, `NORMS`.
Every function works per example: `delta` and `gradient` are `[B, *spatial, C]`, `eps` is `[B]`, in
units of [0, 1] pixels. `norm` is 'linf', 'l2' or 'l1'.

Example:

    delta = random_start(keys, images, eps, norm='l2')
    delta = project(delta + step * ascent_direction(gradient, norm='l2'), eps, norm='l2')
    adversarial = to_box(images + delta)
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medrobust_jax.core import rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array

NORMS = ('linf', 'l2', 'l1')


def _check(norm: str) -> None:
    if norm not in NORMS:
        did_you_mean(norm, NORMS, 'norm')


def norm_of(delta: Array, *, norm: str) -> Array:
    """The norm of each example's `delta` `[B, ...]`; returns `[B]`.

    The L2 norm is scaled by the largest entry first, so that tiny gradients do not underflow when
    squared.
    """
    _check(norm)
    flat = jnp.abs(delta.reshape(delta.shape[0], -1))
    largest = flat.max(axis=1)
    if norm == 'linf':
        return largest
    if norm == 'l1':
        return flat.sum(axis=1)
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(jnp.sum((flat / scale[:, None]) ** 2, axis=1))


def project(delta: Array, eps: Array, *, norm: str) -> Array:
    """The nearest point (in L2) of the ball of radius `eps` `[B]` to `delta` `[B, ...]`."""
    _check(norm)
    radius = per_example(eps, delta)
    if norm == 'linf':
        return jnp.clip(delta, -radius, radius)
    if norm == 'l2':
        size = per_example(norm_of(delta, norm='l2'), delta)
        return delta * jnp.minimum(1, radius / jnp.where(size > 0, size, 1))
    return jax.vmap(_project_l1)(delta, eps)


def _project_l1(delta: Array, eps: Array) -> Array:
    """Soft-thresholding at the level that leaves mass `eps` (Duchi et al., ICML 2008, figure 1)."""
    size = jnp.abs(delta).ravel()
    ordered = jnp.sort(size)[::-1]
    mass = jnp.cumsum(ordered)
    rank = jnp.arange(1, size.size + 1)
    kept = jnp.maximum(jnp.sum(ordered * rank > mass - eps), 1)
    level = jnp.maximum((mass[kept - 1] - eps) / kept, 0)
    shrunk = jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - level, 0)
    return jnp.where(size.sum() <= eps, delta, shrunk)


class Room(NamedTuple):
    """How far each pixel may move before it meets the box, in step lengths; `[B, *spatial, C]` each."""

    down: Array
    up: Array


def room_of(images: Array, length: Array) -> Room:
    """The room around `images` `[B, *spatial, C]` for steps of `length` `[B]`."""
    size = per_example(jnp.where(length > 0, length, 1), images)
    return Room(images / size, (1 - images) / size)


def ascent_direction(gradient: Array, *, norm: str, room: Room | None = None, l1_fraction: float = 0.01) -> Array:
    """The direction in which a step of unit length climbs most.

    linf: `sign(g)`. l2: `g / ||g||_2`, zero where g is zero. l1: the sign on the `l1_fraction` of
    entries that are largest in size, divided by their number, so that the step has L1 norm 1
    (sparse steps: Tramer and Boneh, NeurIPS 2019); what an entry has no room for goes to the next
    largest, or the step would be spent on the same saturated pixels again and again.

    Args:
      gradient: `[B, ...]`.
      norm: which ball is climbed in.
      room: how far entries may move, used by 'l1' alone; default without bounds.
      l1_fraction: in (0, 1], used by 'l1' alone.
    """
    _check(norm)
    if norm == 'linf':
        return jnp.sign(gradient)
    if norm == 'l2':
        size = per_example(norm_of(gradient, norm='l2'), gradient)
        return jnp.where(size > 0, gradient / jnp.where(size > 0, size, 1), 0)
    share = 1 / max(1, round(l1_fraction * gradient[0].size))
    most = jnp.full_like(gradient, share)
    if room is not None:
        most = jnp.minimum(most, jnp.where(gradient > 0, room.up, room.down))
    return jnp.sign(gradient) * jax.vmap(_fill)(jnp.abs(gradient), most)


def _fill(priority: Array, most: Array) -> Array:
    """Shares a mass of 1 among entries by falling `priority`, at most `most` each."""
    order = jnp.argsort(-priority.ravel())
    ordered = most.ravel()[order]
    before = jnp.cumsum(ordered) - ordered
    return jnp.zeros_like(ordered).at[order].set(jnp.clip(1 - before, 0, ordered)).reshape(most.shape)


def random_start(keys: Array, images: Array, eps: Array, *, norm: str) -> Array:
    """A random perturbation in the ball, `[B, ...]`, independent per example.

    linf: U(-eps, eps) per pixel. l2: a uniform direction with radius `eps * u**(1/d)`, which is
    uniform in the ball. l1: Laplace noise of L1 norm `eps * u`. Drawn in float32 at least, cast to
    the images' dtype.
    """
    _check(norm)
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    shape = images.shape[1:]
    if norm == 'linf':
        noise = rng.uniform(keys, shape, -1.0, 1.0, dtype)
        return (noise * per_example(eps, images)).astype(images.dtype)
    direction_keys, radius_keys = rng.split_each(keys, 2)
    radius = rng.uniform(radius_keys, (), dtype=dtype)
    if norm == 'l2':
        noise = rng.normal(direction_keys, shape, dtype)
        radius = radius ** (1 / noise[0].size)
    else:
        noise = jax.vmap(lambda key: jax.random.laplace(key, shape, dtype))(direction_keys)
    noise = noise / per_example(norm_of(noise, norm=norm), noise)
    return (noise * per_example(eps * radius, images)).astype(images.dtype)


def to_box(images: Array) -> Array:
    """Clips pixels to [0, 1]. After `project` it never leaves the ball, since the clean image is in the box."""
    return jnp.clip(images, 0, 1)
