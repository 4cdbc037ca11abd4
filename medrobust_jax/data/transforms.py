"""Augmentation in JAX: one key per example, labels that move with the pixels.

Contents: `Transform`, `flip_horizontal`, `flip_vertical`, `shift`, `affine`, `intensity`, `noise`,
`compose`, `TRANSFORMS` (by name, for configs).

A transform is `(keys [B], batch) -> batch` and may be jitted. It takes 2-D images and moves, where
the batch has them:

* 'image' `[B, H, W, C]` in [0, 1], which stays there (except under `noise`);
* 'segmentation' `[B, H, W]`, integer classes, by nearest neighbor;
* 'points' `[B, P, 2]`, (x, y) as fractions of width and height: 0 is the left (top) edge of the
  first pixel, 1 the right (bottom) edge of the last, so column j has its center at (j + 1/2) / W;
* 'boxes' `[B, N, 4]`, (x_min, y_min, x_max, y_max) in the same units; a turned box becomes the
  upright box around its corners.

Points and boxes may leave [0, 1] and are not clipped. Everything else passes unchanged. Where
pixels come from outside the image, its edge is repeated.

Example:

    augment = compose(flip_horizontal(), shift(max_pixels=3), intensity(brightness=.1))
    batch = jax.jit(augment)(example_keys(seed, batch['index'], step), batch)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from medrobust_jax.core import rng
from medrobust_jax.core.transforms import gaussian_noise
from medrobust_jax.core.types import Array, Batch

Transform = Callable[[Array, Batch], Batch]


def compose(*transforms: Transform) -> Transform:
    """Applies transforms in order, each with keys of its own."""
    def apply(keys: Array, batch: Batch) -> Batch:
        for number, transform in enumerate(transforms):
            batch = transform(rng.fold(keys, number), batch)
        return batch
    return apply


def flip_horizontal(*, p: float = .5) -> Transform:
    """Mirrors left and right with probability `p`; not for images whose side matters."""
    return _flip(p, axis=1)


def flip_vertical(*, p: float = .5) -> Transform:
    """Mirrors top and bottom with probability `p`."""
    return _flip(p, axis=0)


def shift(*, max_pixels: int) -> Transform:
    """Moves by whole pixels, uniform in -max_pixels ... max_pixels, in x and y.

    Raises:
      ValueError: for a negative `max_pixels`.
    """
    _check('max_pixels', max_pixels, 0, jnp.inf)

    def apply(keys: Array, batch: Batch) -> Batch:
        moves = jax.vmap(lambda key: jax.random.randint(key, (2,), -max_pixels, max_pixels + 1))(keys)

        def move(image: Array, offset: Array) -> Array:
            rows = jnp.clip(jnp.arange(image.shape[0]) - offset[1], 0, image.shape[0] - 1)
            columns = jnp.clip(jnp.arange(image.shape[1]) - offset[0], 0, image.shape[1] - 1)
            return image[rows][:, columns]

        moved = {name: jax.vmap(move)(batch[name], moves) for name in _planes(batch)}
        identity = jnp.broadcast_to(jnp.eye(2), (len(moves), 2, 2))
        return {**batch, **moved, **_move_labels(batch, identity, moves.astype(jnp.float32))}
    return apply


def affine(*, max_degrees: float = 10., max_scale: float = .1, max_pixels: float = 0.) -> Transform:
    """Turns, scales and moves about the image's center, bilinearly.

    A pixel at p (x to the right, y down, from the center) goes to s R(a) p + t with the angle a
    uniform in +-max_degrees, log s uniform in +-log(1 + max_scale) and t uniform in +-max_pixels.

    Args:
      max_degrees: largest turn, in degrees, 0 to 180.
      max_scale: largest enlargement, as a fraction: .1 scales from 1/1.1 to 1.1.
      max_pixels: largest move in x and y, in pixels, fractions of a pixel included.

    Raises:
      ValueError: for a range outside the above.
    """
    _check('max_degrees', max_degrees, 0, 180)
    _check('max_scale', max_scale, 0, 10)
    _check('max_pixels', max_pixels, 0, jnp.inf)

    def apply(keys: Array, batch: Batch) -> Batch:
        draws = rng.uniform(keys, (4,), -1., 1.)
        angle, scale = jnp.deg2rad(max_degrees) * draws[:, 0], (1 + max_scale) ** draws[:, 1]
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        turn = jnp.stack([jnp.stack([cosine, -sine], -1), jnp.stack([sine, cosine], -1)], -2)
        linear = scale[:, None, None] * turn
        offset = max_pixels * draws[:, 2:]
        moved = {}
        for name in _planes(batch):
            order = 1 if name == 'image' else 0
            moved[name] = jax.vmap(lambda plane, a, t, order=order: _warp(plane, a, t, order))(
                batch[name], linear, offset)
        # Interpolation weights add up to 1 only up to rounding.
        moved['image'] = jnp.clip(moved['image'], 0., 1.)
        return {**batch, **moved, **_move_labels(batch, linear, offset)}
    return apply


def intensity(*, brightness: float = 0., contrast: float = 0., gamma: float = 0.) -> Transform:
    """clip(((x - 1/2) c + 1/2 + b), 0, 1) ** g, with b, c, g drawn once per image.

    Args:
      brightness: b is uniform in +-brightness, 0 to 1.
      contrast: log c is uniform in +-log(1 + contrast).
      gamma: log g is uniform in +-log(1 + gamma).

    Raises:
      ValueError: for a range outside the above.
    """
    _check('brightness', brightness, 0, 1)
    _check('contrast', contrast, 0, 10)
    _check('gamma', gamma, 0, 10)

    def apply(keys: Array, batch: Batch) -> Batch:
        images = batch['image']
        draws = rng.uniform(keys, (3,), -1., 1.)
        add, stretch, power = (draw.reshape(-1, *[1] * (images.ndim - 1)) for draw in
                               (brightness * draws[:, 0], (1 + contrast) ** draws[:, 1],
                                (1 + gamma) ** draws[:, 2]))
        changed = jnp.clip((images - .5) * stretch + .5 + add, 0., 1.)
        if gamma:
            changed = changed ** power
        return {**batch, 'image': changed.astype(images.dtype)}
    return apply


def noise(*, sigma: float) -> Transform:
    """Adds N(0, sigma^2) to every pixel and does not clip: what training for randomized smoothing needs.

    The smoothed classifier (`evaluate.smoothing`) sees noise that leaves [0, 1] and is no less there, so training
    must too. Put it last, and train with the defense 'natural': an attack's ball would begin outside the box.

    Args:
      sigma: >= 0, in units of [0, 1] pixels.

    Raises:
      ValueError: for a negative sigma.

    References: Cohen, Rosenfeld, Kolter, ICML 2019, section 3.3.
    """
    _check('sigma', sigma, 0, 10)
    add = gaussian_noise(sigma=sigma)
    return lambda keys, batch: {**batch, 'image': add(keys, batch['image'])}


TRANSFORMS: dict[str, Callable[..., Transform]] = {
    'flip_horizontal': flip_horizontal,
    'flip_vertical': flip_vertical,
    'shift': shift,
    'affine': affine,
    'intensity': intensity,
    'noise': noise,
}


def _flip(p: float, axis: int) -> Transform:
    """Mirrors an axis of the image, 0 rows or 1 columns, with probability `p`."""
    _check('p', p, 0, 1)

    def apply(keys: Array, batch: Batch) -> Batch:
        mirror = rng.uniform(keys, ()) < p
        moved = {}
        for name in _planes(batch):
            chosen = mirror.reshape(-1, *[1] * (batch[name].ndim - 1))
            moved[name] = jnp.where(chosen, jnp.flip(batch[name], axis + 1), batch[name])
        sign = jnp.where(mirror, -1., 1.)
        x_and_y = (sign, jnp.ones_like(sign)) if axis == 1 else (jnp.ones_like(sign), sign)
        linear = jax.vmap(jnp.diag)(jnp.stack(x_and_y, -1))
        return {**batch, **moved, **_move_labels(batch, linear, jnp.zeros((len(sign), 2)))}
    return apply


def _planes(batch: Batch) -> list[str]:
    """The names of what is made of pixels."""
    if batch['image'].ndim != 4:
        raise ValueError(f"transforms take 2-D images [B, H, W, C]; these have shape {batch['image'].shape}")
    return [name for name in ('image', 'segmentation') if name in batch]


def _warp(plane: Array, linear: Array, offset: Array, order: int) -> Array:
    """Pulls a plane `[H, W]` or `[H, W, C]` back through p -> linear p + offset."""
    height, width = plane.shape[:2]
    center = jnp.array([(width - 1) / 2, (height - 1) / 2])
    columns, rows = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
    target = jnp.stack([columns, rows], -1) - center - offset
    source = target @ _inverse(linear).T + center
    where = [source[..., 1], source[..., 0]]
    if plane.ndim == 2:
        return map_coordinates(plane, where, order=order, mode='nearest')
    return jax.vmap(lambda channel: map_coordinates(channel, where, order=order, mode='nearest'),
                    in_axes=-1, out_axes=-1)(plane)


def _inverse(linear: Array) -> Array:
    """The inverse of one turn and scaling, which is its transpose over its determinant."""
    return linear.T / (linear[0, 0] * linear[1, 1] - linear[0, 1] * linear[1, 0])


def _move_labels(batch: Batch, linear: Array, offset: Array) -> dict[str, Array]:
    """Points and boxes through p -> linear p + offset, p in pixels from the image's center."""
    size = jnp.array([batch['image'].shape[2], batch['image'].shape[1]], jnp.float32)

    def move(points: Array) -> Array:
        pixels = (points - .5) * size
        return (jnp.einsum('bij,bpj->bpi', linear, pixels, precision='highest') + offset[:, None]) / size + .5

    moved = {}
    if 'points' in batch:
        moved['points'] = move(batch['points'])
    if 'boxes' in batch:
        # All four corners, four points per box.
        corners = move(batch['boxes'][..., jnp.array([0, 1, 2, 1, 0, 3, 2, 3])].reshape(len(offset), -1, 2))
        corners = corners.reshape(len(offset), -1, 4, 2)
        moved['boxes'] = jnp.concatenate([corners.min(2), corners.max(2)], -1)
    return moved


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f'{name} = {value} must lie in [{low}, {high}]')
