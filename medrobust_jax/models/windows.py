"""The geometry of sliding windows and of their transposes.

A window with strides reads, through each of its taps, a regular subset of the inputs. Its
transpose (what a gradient needs) splits the inputs by their residue modulo the strides, the
*phases*: every phase is reached by a fixed subset of the taps, at unit stride, so that no zeros
are inserted and multiplied. `convolution` builds its gradients from these pieces.

Contents: `Window`, `Phase`, `extent`, `grid`, `taps`, `spread`, `by_phase`.

Example, 3x3 sums and their transpose:

    window = Window(strides=(2, 2), padding=((1, 1), (1, 1)), dilation=(1, 1))
    sums = sum(part for _, _, part in taps(images, (3, 3), window, 0))
    back = spread(images, (3, 3), window, lambda i, j, part: part, sums)
"""
from collections.abc import Callable, Iterator
from math import gcd
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Pair = tuple[int, int]


class Window(NamedTuple):
    """A sliding window: all that its gradients need besides the arrays."""

    strides: tuple[int, ...]
    padding: tuple[Pair, ...]
    dilation: tuple[int, ...]


class Phase(NamedTuple):
    """The taps that reach the inputs `phase, phase + stride, ...` of one axis.

    Tap `first + n * step` meets, at the t-th of these inputs, the output `t + shift - n * back`.
    """

    first: int
    step: int
    count: int
    shift: int
    back: int

    def taps(self) -> list[int]:
        """The taps, in order."""
        return [self.first + n * self.step for n in range(self.count)]

    def shifts(self) -> list[int]:
        """How far each tap's output lies from the input's place in its phase."""
        return [self.shift - n * self.back for n in range(self.count)]


def _phases(size: int, stride: int, low: int, dilation: int) -> list[Phase]:
    """Splits the taps of a window by the inputs they reach, one phase per residue of the stride.

    Output o reads input `o * stride + k * dilation - low` through tap k. So the taps that reach
    input i are those with `i + low - k * dilation` divisible by the stride: every
    `stride / gcd(stride, dilation)`-th one.
    """
    step = stride // gcd(stride, dilation)
    phases = []
    for phase in range(stride):
        taps = [k for k in range(size) if (phase + low - k * dilation) % stride == 0]
        first = taps[0] if taps else 0
        shift = (phase + low - first * dilation) // stride
        phases.append(Phase(first, step, len(taps), shift, dilation * step // stride))
    return phases


def extent(size: int, dilation: int) -> int:
    """How many pixels a dilated window of `size` taps spans."""
    return (size - 1) * dilation + 1


def _phases_of(size: tuple[int, ...], window: Window) -> list[list[Phase]]:
    """The phases of the rows and of the columns."""
    return [
        _phases(size[axis], window.strides[axis], window.padding[axis][0], window.dilation[axis])
        for axis in (0, 1)
    ]


def grid(images: Array, window: Window) -> Pair:
    """The number of inputs per phase along each axis, rounded up."""
    return -(-images.shape[1] // window.strides[0]), -(-images.shape[2] // window.strides[1])


def by_phase(
    images: Array, size: tuple[int, ...], window: Window, one: Callable[[Phase, Phase], Array]
) -> Array:
    """Interleaves `one(row phase, column phase)` `[B, h, w, C]` into an array like `images`."""
    rows, columns = _phases_of(size, window)
    parts = [[one(row, column) for column in columns] for row in rows]
    if window.strides == (1, 1):
        return parts[0][0]
    stacked = jnp.stack([jnp.stack(row, 3) for row in parts], 2)
    lengths = (n * stride for n, stride in zip(grid(images, window), window.strides, strict=True))
    full = stacked.reshape(images.shape[0], *lengths, -1)
    return full[:, : images.shape[1], : images.shape[2]]


def taps(
    images: Array, size: tuple[int, ...], window: Window, fill: float
) -> Iterator[tuple[int, int, Array]]:
    """Yields (i, j, what tap (i, j) of every window reads `[B, H_out, W_out, C]`)."""
    # `lax.pad`, because a gradient's window may have negative padding: it cuts.
    pads = ((0, 0, 0), *((low, high, 0) for low, high in window.padding), (0, 0, 0))
    padded = lax.pad(images, jnp.asarray(fill, images.dtype), pads)
    spans = []
    for axis in (0, 1):
        reach = extent(size[axis], window.dilation[axis])
        outputs = (padded.shape[axis + 1] - reach) // window.strides[axis] + 1
        spans.append(extent(outputs, window.strides[axis]))
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = i * window.dilation[0], j * window.dilation[1]
            rows = slice(top, top + spans[0], window.strides[0])
            columns = slice(left, left + spans[1], window.strides[1])
            yield i, j, padded[:, rows, columns]


def spread(
    images: Array, size: tuple[int, ...], window: Window, term: Callable[..., Array], *arrays: Array
) -> Array:
    """The transpose of `taps`: sums, at every input pixel, the terms of the taps that read it.

    Args:
      images: the inputs, for their shape.
      size: taps per axis.
      window: strides, padding, dilation.
      term: `(i, j, *parts) -> [B, h, w, C]`, what tap (i, j) sends back.
      *arrays: `[B, H_out, W_out, ...]`, cut into the parts that `term` receives.
    """
    lengths = grid(images, window)
    phases = _phases_of(size, window)
    pads = []
    for axis in (0, 1):
        shifts = [shift for phase in phases[axis] for shift in phase.shifts()]
        missing = lengths[axis] + max(shifts) - arrays[0].shape[axis + 1]
        pads.append((max(0, -min(shifts)), max(0, missing)))
    padded = [jnp.pad(array, ((0, 0), *pads, *((0, 0),) * (array.ndim - 3))) for array in arrays]

    def one(row: Phase, column: Phase) -> Array:
        total = jnp.zeros((images.shape[0], *lengths, images.shape[3]), arrays[-1].dtype)
        for i, down in zip(row.taps(), row.shifts(), strict=True):
            for j, right in zip(column.taps(), column.shifts(), strict=True):
                top, left = down + pads[0][0], right + pads[1][0]
                parts = [array[:, top : top + lengths[0], left : left + lengths[1]] for array in padded]
                total = total + term(i, j, *parts)
        return total

    return by_phase(images, size, window, one)
