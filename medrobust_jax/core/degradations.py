r"""What happens to medical images between the patient and the screen, in physical units.

Pure functions of images `[B, *spatial, C]` in [0, 1] and per-example parameters `[B]`, computed in
the images' dtype, differentiable in both. Results are not clipped to the box.

Contents: `gaussian_blur`, `motion_blur` (a camera or probe in linear motion), `ghosting` (periodic
motion under MR's phase encoding), `low_resolution` (a smaller part of k-space), `bias_field` (a coil's
or tube's uneven gain) with `bias_terms` and `bias_basis`. `core.corruptions` grades them by severity.

Example:

    blurred = gaussian_blur(images, sigma=jnp.full(len(images), 1.5))
"""
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array


def require_plane(images: Array, what: str) -> None:
    """Raises ValueError unless `images` are two-dimensional, `[B, H, W, C]`."""
    if images.ndim != 4:
        raise ValueError(f'{what} is defined for [batch, height, width, channels], not shape {images.shape}')


def gaussian_blur(images: Array, sigma: Array) -> Array:
    """Gaussian smoothing along every spatial axis, mirrored at the edges (d c b a | a b c d | d c b a).

    Args:
      images: `[B, *spatial, C]`.
      sigma: `[B]` > 0, the standard deviation in pixels; exact up to half the shortest side. Weights
        are the Gaussian sampled at whole pixels, normalized, and not truncated.
    """
    for axis in range(1, images.ndim - 1):
        size = images.shape[axis]
        position = jnp.arange(size, dtype=images.dtype)
        near, far = position[:, None] - position, position[:, None] + position + 1
        scale = per_example(sigma.astype(images.dtype), near[None])
        mirrored = [jnp.exp(-.5 * ((offset + 2 * size * turn) / scale) ** 2)
                    for turn in (-1, 0, 1) for offset in (near, far)]
        matrix = functools.reduce(jnp.add, mirrored)
        matrix = matrix / matrix.sum(axis=2, keepdims=True)
        blurred = jnp.einsum('bij,bj...->bi...', matrix, jnp.moveaxis(images, axis, 1), precision='highest')
        images = jnp.moveaxis(blurred, 1, axis)
    return images


def motion_blur(images: Array, length: Array, angle: Array, *, longest: int) -> Array:
    """The mean of the image along a straight line, edge pixels continued outwards.

    Args:
      images: `[B, H, W, C]`.
      length: `[B]` >= 0, of the line in pixels, at most `longest`.
      angle: `[B]` in radians, from the direction of columns towards that of rows.
      longest: decides how densely the line is sampled: at `longest + 1` points, bilinearly.

    Raises:
      ValueError: for images that are not two-dimensional.
    """
    require_plane(images, 'motion blur')
    height, width, channels = images.shape[1:]
    reach = longest // 2 + 2
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode='edge')
    direction = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=1).astype(images.dtype)

    def shifted(image: Array, offset: Array) -> Array:
        whole = jnp.floor(offset)
        part = offset - whole
        start = jnp.append(reach + whole.astype(jnp.int32), jnp.int32(0))
        window = jax.lax.dynamic_slice(image, start, (height + 1, width + 1, channels))
        window = window[:-1] + part[0] * (window[1:] - window[:-1])
        return window[:, :-1] + part[1] * (window[:, 1:] - window[:, :-1])

    def add(total: Array, place: Array) -> tuple[Array, None]:
        offsets = place * length.astype(images.dtype)[:, None] * direction
        return total + jax.vmap(shifted)(padded, offsets), None

    places = jnp.linspace(-.5, .5, longest + 1, dtype=images.dtype)
    total, _ = jax.lax.scan(add, jnp.zeros_like(images), places)
    return total / len(places)


def ghosting(images: Array, shift: Array, period: Array, phase: Array, along_rows: Array) -> Array:
    """MR of something that moves to and fro while its k-space lines are measured one after the other.

        F'(k) = F(k) exp(-2 pi i k d_k / N),     d_k = shift sin(2 pi k / period + phase)

    along the phase-encoded axis; the result is the magnitude. Ghosts appear N / period pixels apart.

    Args:
      images: `[B, H, W, C]`.
      shift: `[B]`, amplitude of the motion in pixels.
      period: `[B]` > 0, k-space lines measured per cycle.
      phase: `[B]` in radians.
      along_rows: `[B]` bool, whether columns (not rows) of pixels are phase-encoded, so that ghosts
        lie beside and not above each other.

    Raises:
      ValueError: for images that are not two-dimensional.
    """
    require_plane(images, 'ghosting')
    height, width = images.shape[1:3]
    rows = jnp.asarray(np.fft.fftfreq(height), images.dtype)[:, None, None]  # k / N
    columns = jnp.asarray(np.fft.fftfreq(width), images.dtype)[None, :, None]
    frequency = jnp.where(per_example(along_rows, images), columns, rows)
    line = frequency * jnp.where(per_example(along_rows, images), width, height)
    moved = per_example(shift, images) * jnp.sin(
        2 * jnp.pi * line / per_example(period, images) + per_example(phase, images))
    turn = -2 * jnp.pi * frequency * moved
    spectrum = jnp.fft.fft2(images, axes=(1, 2)) * (jnp.cos(turn) + 1j * jnp.sin(turn))
    image = jnp.fft.ifft2(spectrum, axes=(1, 2))
    tiny = 1e-12  # the root has no gradient at zero
    return jnp.sqrt(image.real ** 2 + image.imag ** 2 + tiny).astype(images.dtype)


def low_resolution(images: Array, factor: Array) -> Array:
    """Keeps the low frequencies |k| <= N / (2 factor) of every axis and fills the rest with zeros.

    What a scan of `factor` times larger pixels shows on the same grid, ringing at edges included.

    Args:
      images: `[B, *spatial, C]`.
      factor: `[B]` >= 1; 1 keeps everything. The last line kept is weighted by the fraction due.
    """
    axes = tuple(range(1, images.ndim - 1))
    spectrum = jnp.fft.fftn(images, axes=axes)
    for axis in axes:
        size = images.shape[axis]
        line = np.abs(np.fft.fftfreq(size) * size).reshape([-1 if a == axis else 1 for a in range(images.ndim)])
        limit = size / (2 * per_example(factor.astype(images.dtype), images))
        spectrum = spectrum * jnp.clip(limit + 1 - jnp.asarray(line, images.dtype), 0, 1)
    return jnp.fft.ifftn(spectrum, axes=axes).real.astype(images.dtype)


def bias_terms(num_axes: int, order: int) -> tuple[tuple[int, ...], ...]:
    """The degrees per axis of a field's terms: all with a total of 1 ... `order`."""
    return tuple(d for d in itertools.product(range(order + 1), repeat=num_axes) if 0 < sum(d) <= order)


def bias_basis(spatial: tuple[int, ...], order: int) -> np.ndarray:
    """Products of Legendre polynomials over the image, `[P, *spatial]`, in the order of `bias_terms`."""
    lines = [np.polynomial.legendre.legvander((2 * np.arange(n) + 1) / n - 1, order) for n in spatial]
    return np.stack([math.prod(np.expand_dims(line[:, d], tuple(a for a in range(len(spatial)) if a != axis))
                               for axis, (line, d) in enumerate(zip(lines, degrees, strict=True)))
                     for degrees in bias_terms(len(spatial), order)])


def bias_field(images: Array, coefficients: Array, strength: Array, *, order: int = 3) -> Array:
    """Multiplies with a smooth positive field, and scales the result to the brightest pixel there was.

        c image exp(strength f / max|f|),     f = sum_p coefficients_p P_p,     c: the maximum stays

    Scanners scale what they reconstruct, so that an uneven gain darkens the rest and saturates nothing.

    Args:
      images: `[B, *spatial, C]`.
      coefficients: `[B, P]`, P = `len(bias_terms(num_axes, order))`; their common scale does not
        matter. All zero gives no field.
      strength: `[B]` >= 0, the largest logarithm of the gain, up or down.
      order: the polynomial's largest total degree, >= 1.

    References: smooth fields as exponentials of polynomials: Van Leemput et al., IEEE TMI 1999.
    """
    basis = jnp.asarray(bias_basis(images.shape[1:-1], order), images.dtype)
    field = jnp.tensordot(coefficients.astype(images.dtype), basis, 1, precision='highest')[..., None]
    largest = jnp.abs(field).max(axis=tuple(range(1, field.ndim)))
    scale = strength.astype(images.dtype) / jnp.where(largest > 0, largest, 1)
    uneven = images * jnp.exp(per_example(scale, field) * field)
    before, after = (a.reshape(a.shape[0], -1).max(axis=1) for a in (images, uneven))
    return uneven * per_example(before / jnp.where(after > 0, after, 1), images)
