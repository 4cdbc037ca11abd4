"""Convolution and pooling that stay fast inside loops on CPU.

On CPU, XLA rewrites JAX's own convolution gradients only outside of loops; inside the body of a
`while`, `scan`, `map` or `cond` (where iterative attacks and blocked evaluation live) they fall
to a naive loop nest, 3 to 80 times slower (jax issue 12868). Here every gradient is itself made
of ordinary forward operations, which are fast anywhere. GPU and TPU keep the stock operations;
`loop_safe` is the one place that decides.

Contents: `loop_safe`, `conv_general_dilated`, `max_pool`, `average_pool`, `global_average_pool`.

Limits: reverse mode only on CPU (`jax.jvp` and `jax.grad` of `jax.grad` need stock operations).
Under `jit` the kernel's gradient costs nothing where only images are differentiated: nothing
uses it, so the compiler drops it.

Example:

    conv = nn.Conv(64, (3, 3), padding=1, conv_general_dilated=conv_general_dilated)
    features = max_pool(conv(images), window=3, stride=2, padding=1)
    pooled = global_average_pool(features)  # [B, 64]
"""
import itertools
from collections.abc import Sequence
from functools import partial, reduce
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from medrobust_jax.models.windows import Pair, Phase, Window, by_phase, extent, grid, spread, taps

Array = jax.Array

# Per number of array axes: images [B, *spatial, C], kernels [*taps, C, C_out].
LAYOUTS = {4: ('NHWC', 'HWIO', 'NHWC'), 5: ('NDHWC', 'DHWIO', 'NDHWC')}
_NARROW = 4  # input channels up to which one matrix product beats a convolution (measured)
_NUMBERS = {
    4: lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
    5: lax.ConvDimensionNumbers((0, 4, 1, 2, 3), (4, 3, 0, 1, 2), (0, 4, 1, 2, 3)),
}


def loop_safe() -> bool:
    """Whether the operations of this file replace the stock ones: on CPU only."""
    return jax.default_backend() == 'cpu'


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[Pair],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **options: Any,
) -> Array:
    """`lax.conv_general_dilated` with loop-safe gradients on CPU; for `nn.Conv`'s argument.

    Covers 2-D and 3-D convolutions, channels last, with any kernel size, stride, padding and kernel
    dilation, ungrouped or depthwise. Everything else (1-D, dilated inputs, other groups, a requested
    precision) is the stock operation: right everywhere, slow in loops on CPU.

    Args:
      lhs: images `[B, *spatial, C]`.
      rhs: kernels `[*taps, C / groups, C_out]`.
      window_strides: a stride per spatial axis.
      padding: 'SAME', 'VALID' or a (low, high) pair per spatial axis.
      lhs_dilation: as in `lax.conv_general_dilated`.
      rhs_dilation: a kernel dilation per spatial axis.
      dimension_numbers: as in `lax.conv_general_dilated`.
      feature_group_count: 1, or C for a depthwise convolution.
      precision: as in `lax.conv_general_dilated`.
      **options: as in `lax.conv_general_dilated`.

    Returns:
      `[B, *spatial_out, C_out]`.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    covered = lhs.ndim in _NUMBERS and set(lhs_dilation or (1,)) == {1} and precision is None and not options
    if covered and feature_group_count > 1:
        covered = feature_group_count == lhs.shape[-1] == rhs.shape[-1]
    if not (covered and numbers == _NUMBERS[lhs.ndim] and loop_safe()):
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, precision=precision, **options,
        )
    dilation = tuple(rhs_dilation or (1,) * (lhs.ndim - 2))
    strides = tuple(window_strides)
    if isinstance(padding, str):
        extents = [extent(size, d) for size, d in zip(rhs.shape[:-2], dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], extents, strides, padding)
    pairs = tuple((low, high) for low, high in padding)
    convolve = _depthwise if feature_group_count > 1 else _convolve
    return convolve(lhs, rhs, Window(strides, pairs, dilation))


def _conv(images: Array, kernels: Array, window: Window) -> Array:
    """The stock convolution, or a matrix product where the stock one is slow; of volumes, slice by slice."""
    if images.ndim == 5:
        return _folded(images, kernels, window)
    reach = (extent(size, step) for size, step in zip(kernels.shape[:-2], window.dilation, strict=True))
    if any(size < span for size, span in zip(images.shape[1:-1], reach, strict=True)):
        # XLA:CPU runs kernels larger than the image through a naive loop nest, 20 times slower: a
        # 3x3 convolution at 2x2 pixels, say, where 28-pixel images end after four halvings.
        patches = [part for _, part in taps(images, kernels.shape[:-2], window, 0)]
        return jnp.concatenate(patches, axis=-1) @ kernels.reshape(-1, kernels.shape[-1])
    return lax.conv_general_dilated(
        images, kernels, window.strides, window.padding,
        rhs_dilation=window.dilation, dimension_numbers=LAYOUTS[images.ndim],
    )


def _folded(images: Array, kernels: Array, window: Window) -> Array:
    """A convolution of volumes as one of slices, for which the taps along the first axis are channels.

    XLA:CPU's own convolution of volumes takes 5 times as long (3x3x3 at 32^3 with 16 channels).
    """
    first, rest = (Window(window.strides[part], window.padding[part], window.dilation[part])
                   for part in (slice(1), slice(1, None)))
    lines = images.reshape(*images.shape[:2], -1)
    parts = [part for _, part in taps(lines, kernels.shape[:1], first, 0)]
    slices = [part.reshape(-1, *images.shape[2:]) for part in parts]
    flat = jnp.moveaxis(kernels, 0, -3).reshape(*kernels.shape[1:3], -1, kernels.shape[-1])
    out = _conv(jnp.concatenate(slices, axis=-1), flat, rest)
    return out.reshape(images.shape[0], -1, *out.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(images: Array, kernels: Array, window: Window) -> Array:
    """A convolution whose gradients are convolutions."""
    return _conv(images, kernels, window)


def _convolve_forward(images: Array, kernels: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return _conv(images, kernels, window), (images, kernels)


def _convolve_backward(
    window: Window, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    images, kernels = residuals
    narrow = images.shape[-1] <= _NARROW
    image_gradient = _narrow_image_gradient if narrow else _image_gradient
    return (
        image_gradient(images, kernels, gradient, window),
        _kernel_gradient(images, kernels, gradient, window),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _image_gradient(images: Array, kernels: Array, gradient: Array, window: Window) -> Array:
    """The gradient's convolution with the transposed kernel, one per phase of the strides.

    Phases avoid the zero-spaced gradient that the textbook transpose multiplies with.
    """
    transposed = kernels.swapaxes(-2, -1)
    lengths = grid(images, window)

    def one(phases: tuple[Phase, ...]) -> Array:
        if not all(phase.count for phase in phases):  # e.g. the odd pixels of a 1x1 kernel with stride 2
            return jnp.zeros((images.shape[0], *lengths, images.shape[-1]), gradient.dtype)
        chosen = transposed[tuple(slice(phase.first, None, phase.step) for phase in phases)]
        chosen = chosen[(slice(None, None, -1),) * len(phases)]
        # XLA thinks a reversal too cheap to move out of a loop, but it copies the weights at every
        # attack step. The barrier is moved out, and with it what it waits for: a ResNet-18's attack
        # gets 1.4 times faster in blocks of 8 images, a little in large batches.
        chosen = lax.optimization_barrier(chosen)
        pads = tuple(
            ((phase.count - 1) * phase.back - phase.shift, length + phase.shift - size)
            for phase, length, size in zip(phases, lengths, gradient.shape[1:-1], strict=True)
        )
        window_back = Window((1,) * len(phases), pads, tuple(phase.back for phase in phases))
        return _conv(gradient, chosen, window_back)

    return by_phase(images, kernels.shape[:-2], window, one)


def _narrow_image_gradient(images: Array, kernels: Array, gradient: Array, window: Window) -> Array:
    """One matrix product for all taps, then shifted sums: 2-3 times faster at few input channels.

    A convolution onto 1 or 3 channels leaves most of the vector lanes idle.
    """
    *size, channels, features = kernels.shape
    matrix = jnp.moveaxis(kernels, -1, 0).reshape(features, -1)
    shape = (*gradient.shape[:-1], *size, channels)
    products = (gradient.reshape(-1, features) @ matrix).reshape(shape)
    return spread(images, tuple(size), window, lambda tap, part: part[(..., *tap, slice(None))], products)


def _kernel_gradient(images: Array, kernels: Array, gradient: Array, window: Window) -> Array:
    """The images' convolution with the gradient, batch and channels exchanged."""
    padding = []
    for axis, (low, _) in enumerate(window.padding):
        reach = (kernels.shape[axis] - 1) * window.dilation[axis]
        reach += extent(gradient.shape[axis + 1], window.strides[axis])
        padding.append((low, reach - low - images.shape[axis + 1]))
    exchanged = Window(window.dilation, tuple(padding), window.strides)
    # Images become [C, *spatial, B], the gradient kernels [*taps, B, C_out].
    out = _conv(jnp.swapaxes(images, 0, -1), jnp.moveaxis(gradient, 0, -2), exchanged)
    return jnp.moveaxis(out, 0, -2)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(images: Array, kernels: Array, window: Window) -> Array:
    """A depthwise convolution as a sum over taps: 30 times faster on CPU than the stock one."""
    terms = [part * kernels[tap][0] for tap, part in taps(images, kernels.shape[:-2], window, 0)]
    return sum(terms[1:], terms[0])


def _depthwise_forward(images: Array, kernels: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(images, kernels, window), (images, kernels)


def _depthwise_backward(
    window: Window, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    images, kernels = residuals
    size = kernels.shape[:-2]
    image_gradient = spread(images, size, window, lambda tap, part: part * kernels[tap][0], gradient)

    def add(sums: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        image, cotangent = pair
        parts = [part[0] * cotangent for _, part in taps(image[None], size, window, 0)]
        return sums + jnp.stack(parts), None

    # Image by image, because a reduction over all but the last axis is slow on CPU.
    start = jnp.zeros((prod(size), *gradient.shape[1:]), gradient.dtype)
    sums, _ = lax.scan(add, start, (images, gradient))
    return image_gradient, sums.sum(range(1, sums.ndim - 1)).reshape(kernels.shape)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def max_pool(images: Array, *, window: int, stride: int, padding: int = 0) -> Array:
    """The maximum over sliding square (cubic) windows, with a gradient that is fast on CPU.

    Ties: the first maximum of a window in row-major order receives all of its gradient, as in
    PyTorch and in `nn.max_pool`. Padding never wins. NaN anywhere in a window gives NaN and its
    gradient reaches no pixel.

    Args:
      images: `[B, *spatial, C]`.
      window: side of the window.
      stride: step of the window.
      padding: pixels of -inf on every side, at most half of the window.

    Returns:
      `[B, *spatial_out, C]` with `H_out = (H + 2 padding - window) // stride + 1`.
    """
    axes = images.ndim - 2
    pads: Any = ((padding, padding),) * axes  # flax declares str
    if not loop_safe():
        return nn.max_pool(images, (window,) * axes, (stride,) * axes, pads)
    return _max_pool(images, window, Window((stride,) * axes, pads, (1,) * axes))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(images: Array, size: int, window: Window) -> Array:
    return reduce(jnp.maximum, [part for _, part in taps(images, (size,) * len(window.strides), window, -jnp.inf)])


def _max_pool_forward(images: Array, size: int, window: Window) -> tuple[Array, tuple[Array, Array]]:
    pooled: Any = _max_pool(images, size, window)
    return pooled, (images, pooled)


def _max_pool_backward(
    size: int, window: Window, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array]:
    images, pooled = residuals
    sizes = (size,) * len(window.strides)
    places = {tap: number for number, tap in enumerate(itertools.product(range(size), repeat=len(sizes)), start=1)}
    winner = jnp.zeros(pooled.shape, jnp.int32)  # taps count from 1; 0 is nobody, also in the padding
    for tap, part in reversed(list(taps(images, sizes, window, -jnp.inf))):
        winner = jnp.where(part == pooled, places[tap], winner)  # the first tap is written last

    def term(tap: tuple[int, ...], winner_part: Array, gradient_part: Array) -> Array:
        return jnp.where(winner_part == places[tap], gradient_part, 0)

    return (spread(images, sizes, window, term, winner, gradient),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(images: Array, *, window: int) -> Array:
    """The mean over windows that do not overlap; rows and columns left over are dropped.

    Args:
      images: `[B, *spatial, C]`.
      window: side and step of the window.

    Returns:
      `[B, *spatial // window, C]`.
    """
    batch, *sizes, channels = images.shape
    counts = [size // window for size in sizes]
    kept = images[(slice(None), *(slice(count * window) for count in counts))]
    split = kept.reshape(batch, *(n for count in counts for n in (count, window)), channels)
    return split.mean(tuple(range(2, 2 + 2 * len(sizes), 2)))


def global_average_pool(images: Array) -> Array:
    """The mean over all pixels, `[B, *spatial, C]` to `[B, C]`."""
    return images.mean(tuple(range(1, images.ndim - 1)))
