"""The geometry of sliding windows and of their transposes.

A window with strides reads, through each of its taps, a regular subset of the inputs. Its
transpose (what a gradient needs) splits the inputs by their residue modulo the strides, the
*phases*: every phase is reached by a fixed subset of the taps, at unit stride, so that no zeros
are inserted and multiplied. `convolution` builds its gradients from these pieces. Images may have any
number of spatial axes; a tap's place is a tuple, one number per axis.

Contents: `Window`, `Phase`, `extent`, `grid`, `taps`, `spread`, `by_phase`.

Example, 3x3 sums and their transpose:

    window = Window(strides=(2, 2), padding=((1, 1), (1, 1)), dilation=(1, 1))
    sums = sum(part for _, part in taps(images, (3, 3), window, 0))
    back = spread(images, (3, 3), window, lambda tap, part: part, sums)
"""
import itertools
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
    """The phases of every axis."""
    return [
        _phases(count, stride, low, dilation)
        for count, stride, (low, _), dilation in zip(size, *window, strict=True)
    ]


def grid(images: Array, window: Window) -> tuple[int, ...]:
    """The number of inputs per phase along each axis, rounded up."""
    return tuple(-(-n // stride) for n, stride in zip(images.shape[1:-1], window.strides, strict=True))


def by_phase(
    images: Array, size: tuple[int, ...], window: Window, one: Callable[[tuple[Phase, ...]], Array]
) -> Array:
    """Interleaves `one(a phase per axis)` `[B, *spatial / strides, C]` into an array like `images`."""
    phases = _phases_of(size, window)
    if set(window.strides) == {1}:
        return one(tuple(of_axis[0] for of_axis in phases))

    def stacked(chosen: tuple[Phase, ...]) -> Array:
        """The phases of the axes that are still open, each stacked behind its axis."""
        axis = len(chosen)
        if axis == len(phases):
            return one(chosen)
        return jnp.stack([stacked((*chosen, phase)) for phase in phases[axis]], 2 + axis)

    lengths = (n * stride for n, stride in zip(grid(images, window), window.strides, strict=True))
    full = stacked(()).reshape(images.shape[0], *lengths, -1)
    return full[(slice(None), *(slice(n) for n in images.shape[1:-1]))]


def taps(
    images: Array, size: tuple[int, ...], window: Window, fill: float
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yields (tap, what it reads of every window `[B, *spatial_out, C]`), in row-major order."""
    # `lax.pad`, because a gradient's window may have negative padding: it cuts.
    pads = ((0, 0, 0), *((low, high, 0) for low, high in window.padding), (0, 0, 0))
    padded = lax.pad(images, jnp.asarray(fill, images.dtype), pads)
    spans = []
    for axis, count in enumerate(size):
        reach = extent(count, window.dilation[axis])
        outputs = (padded.shape[axis + 1] - reach) // window.strides[axis] + 1
        spans.append(extent(outputs, window.strides[axis]))
    for tap in itertools.product(*map(range, size)):
        starts = [number * dilation for number, dilation in zip(tap, window.dilation, strict=True)]
        cut = [slice(start, start + span, stride)
               for start, span, stride in zip(starts, spans, window.strides, strict=True)]
        yield tap, padded[(slice(None), *cut)]


def spread(
    images: Array, size: tuple[int, ...], window: Window, term: Callable[..., Array], *arrays: Array
) -> Array:
    """The transpose of `taps`: sums, at every input pixel, the terms of the taps that read it.

    Args:
      images: the inputs, for their shape.
      size: taps per axis.
      window: strides, padding, dilation.
      term: `(tap, *parts) -> [B, *spatial / strides, C]`, what a tap sends back.
      *arrays: `[B, *spatial_out, ...]`, cut into the parts that `term` receives.
    """
    lengths = grid(images, window)
    pads = []
    for axis, phases in enumerate(_phases_of(size, window)):
        shifts = [shift for phase in phases for shift in phase.shifts()]
        missing = lengths[axis] + max(shifts) - arrays[0].shape[axis + 1]
        pads.append((max(0, -min(shifts)), max(0, missing)))
    rest = (((0, 0),) * (array.ndim - 1 - len(size)) for array in arrays)
    padded = [jnp.pad(array, ((0, 0), *pads, *more)) for array, more in zip(arrays, rest, strict=True)]

    def one(phases: tuple[Phase, ...]) -> Array:
        total = jnp.zeros((images.shape[0], *lengths, images.shape[-1]), arrays[-1].dtype)
        steps = [list(zip(phase.taps(), phase.shifts(), strict=True)) for phase in phases]
        for chosen in itertools.product(*steps):
            cut = [slice(shift + low, shift + low + length)
                   for (_, shift), (low, _), length in zip(chosen, pads, lengths, strict=True)]
            parts = [array[(slice(None), *cut)] for array in padded]
            total = total + term(tuple(tap for tap, _ in chosen), *parts)
        return total

    return by_phase(images, size, window, one)
