r"""JPEG compression of images on the device, with gradients.

    k = round(DCT(block - 128) / Q(quality)),     block' = clip(round(IDCT(k Q(quality)) + 128), 0, 255)

on 8 x 8 blocks; colors as YCbCr with the two color planes at half resolution. The values are those
of a baseline JPEG file, written and read (libjpeg's conventions); entropy coding, which loses
nothing, is left out. Roundings have no useful gradient, so another one takes its place.

Contents: `jpeg`, `quantization_tables`, `round_half_away`, `ROUNDINGS`.

Example:

    compressed = jpeg(images, jnp.full(len(images), 30.0))     # [B, H, W, C] in multiples of 1/255
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array

# ITU-T T.81, annex K, tables K.1 and K.2.
_LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]])
_CHROMINANCE = np.full((8, 8), 99)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
# ITU-T T.871 (JFIF), rows Y, Cb, Cr over columns R, G, B.
_TO_YCBCR = np.array([[.299, .587, .114], [-.168735892, -.331264108, .5], [.5, -.418687589, -.081312411]])
_TO_RGB = np.array([[1, 0, 1.402], [1, -.344136286, -.714136286], [1, 1.772, 0]])

_COSINES = np.cos(np.pi / 16 * np.outer(np.arange(8), 2 * np.arange(8) + 1))  # [frequency, position]
_NORMS = np.where(np.arange(8) == 0, np.sqrt(.5), 1)
_SCALE = np.outer(_NORMS, _NORMS) / 4


@jax.custom_jvp
def round_half_away(values: Array) -> Array:
    """Rounds to the nearest integer, halves away from zero; its gradient is that of the identity."""
    return jnp.sign(values) * jnp.floor(jnp.abs(values) + .5)


@round_half_away.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return round_half_away(*primals), tangents[0]


def _round_softly(values: Array) -> Array:
    nearest = jax.lax.stop_gradient(round_half_away(values))
    return nearest + (values - nearest) ** 3


ROUNDINGS: dict[str, Callable[[Array], Array]] = {'straight_through': round_half_away, 'soft': _round_softly}


def quantization_tables(quality: Array, dtype: jnp.dtype = jnp.float32) -> tuple[Array, Array]:
    """The tables of luminance and chrominance, `[B, 8, 8]` each, for `quality` `[B]` in 1 ... 100.

    libjpeg's rule: the standard's tables times 50/q below 50 and 2 - q/50 from there, in whole numbers
    1 ... 255. For libjpeg a quality is a whole number; here fractions lie in between.
    """
    guard = 1e-3  # an interpolated quality may lie a rounding error beside a whole number
    q = jnp.clip(quality.astype(dtype), 1, 100)
    percent = jnp.floor(jnp.where(q < 50, 5000 / q, 200 - 2 * q) + guard)[:, None, None]

    def scaled(base: np.ndarray) -> Array:
        return jnp.clip(jnp.floor((jnp.asarray(base, dtype) * percent + 50) / 100), 1, 255)

    return scaled(_LUMINANCE), scaled(_CHROMINANCE)


def jpeg(images: Array, quality: Array, *, subsampling: bool = True, rounding: str = 'straight_through') -> Array:
    """Compresses and decompresses each image.

    Args:
      images: `[B, H, W, C]` in [0, 1], any H and W; C = 3 is color, the channels of any other number
        are compressed each as a grey image.
      quality: `[B]` in 1 ... 100, as libjpeg counts it.
      subsampling: color planes at half resolution (4:2:0), the default of libjpeg and Pillow.
      rounding: 'straight_through': exact values, with the identity's gradient; or 'soft':
        `round(v) + (v - round(v))^3`, whose values differ and whose gradient is its own.

    Returns:
      `[B, H, W, C]`; with exact rounding, multiples of 1/255.

    Raises:
      ValueError: for images that are not two-dimensional, or an unknown rounding.

    References:
      ITU-T T.81 (1992) and T.871 (2011). Soft rounding: Shin and Song, JPEG-resistant Adversarial
      Images, NIPS 2017 workshop on Machine Learning and Computer Security.
    """
    if images.ndim != 4:
        raise ValueError(f'jpeg compresses [batch, height, width, channels], not shape {images.shape}')
    if rounding not in ROUNDINGS:
        did_you_mean(rounding, ROUNDINGS, 'rounding')
    rounded = ROUNDINGS[rounding]
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    luminance, chrominance = quantization_tables(quality, dtype)
    levels = rounded(255 * images.astype(dtype))
    if images.shape[-1] != 3:
        decoded = _through_blocks(levels, luminance, rounded)
    else:
        planes = rounded(_mix(levels, _TO_YCBCR) + jnp.array([0, 128, 128], dtype))
        brightness = _through_blocks(planes[..., :1], luminance, rounded)
        height, width = images.shape[1:3]
        color = _through_blocks(_halve(planes[..., 1:]) if subsampling else planes[..., 1:], chrominance, rounded)
        if subsampling:
            color = _double(color[:, :, :-(-width // 2)])[:, :height, :width]
        decoded = rounded(_mix(jnp.concatenate([brightness, color - 128], axis=-1), _TO_RGB))
    return (jnp.clip(decoded, 0, 255) / 255).astype(images.dtype)


def _mix(planes: Array, matrix: np.ndarray) -> Array:
    return jnp.einsum('bhwc,dc->bhwd', planes, jnp.asarray(matrix, planes.dtype), precision='highest')


def _through_blocks(planes: Array, tables: Array, rounded: Callable[[Array], Array]) -> Array:
    """Quantizes `[B, H, W, C]` in the cosine domain, with `tables` `[B, 8, 8]`; values 0 ... 255."""
    batch, height, width, channels = planes.shape
    padded = jnp.pad(planes, ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0)), mode='edge') - 128
    blocks = padded.reshape(batch, padded.shape[1] // 8, 8, padded.shape[2] // 8, 8, channels)
    cosines, scale = jnp.asarray(_COSINES, planes.dtype), jnp.asarray(_SCALE, planes.dtype)[:, None, :, None]
    steps = tables[:, None, :, None, :, None]
    frequencies = scale * jnp.einsum('ui,bhiwjc,vj->bhuwvc', cosines, blocks, cosines, precision='highest')
    # libjpeg holds frequencies to the eighth, which turns many near halves into halves, rounded up.
    kept = rounded(rounded(8 * frequencies) / (8 * steps)) * steps
    decoded = jnp.einsum('ui,bhuwvc,vj->bhiwjc', cosines, scale * kept, cosines, precision='highest')
    decoded = jnp.clip(rounded(decoded.reshape(padded.shape) + 128), 0, 255)
    return decoded[:, :height, :width]


def _halve(planes: Array) -> Array:
    """The mean of 2 x 2 pixels, halves rounded down and up in turn along a row, as libjpeg does."""
    height, width = planes.shape[1:3]
    padded = jnp.pad(planes, ((0, 0), (0, height % 2), (0, -width % 16), (0, 0)), mode='edge')
    total = padded[:, ::2] + padded[:, 1::2]
    total = total[:, :, ::2] + total[:, :, 1::2]
    bias = jnp.asarray(1 + np.arange(total.shape[2]) % 2, planes.dtype)[:, None]
    return _quarter(total + bias, 4)


def _double(planes: Array) -> Array:
    """Triangle interpolation to twice the size: 3/4 of the near sample, 1/4 of the far one, per axis."""
    tall = _interleave(*(3 * planes + far for far in _neighbors(planes, 1)), axis=1)
    left, right = _neighbors(tall, 2)
    return _interleave(_quarter(3 * tall + left + 8, 16), _quarter(3 * tall + right + 7, 16), axis=2)


def _neighbors(planes: Array, axis: int) -> tuple[Array, Array]:
    """The sample before and the one after along `axis`; the edge is its own neighbor."""
    size = planes.shape[axis]
    before, after = np.maximum(np.arange(size) - 1, 0), np.minimum(np.arange(size) + 1, size - 1)
    return jnp.take(planes, before, axis=axis), jnp.take(planes, after, axis=axis)


def _interleave(even: Array, odd: Array, *, axis: int) -> Array:
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


def _quarter(total: Array, divisor: int) -> Array:
    """`floor(total / divisor)`, with the gradient of the division."""
    exact = total / divisor
    return exact + jax.lax.stop_gradient(jnp.floor(exact) - exact)
