"""From gradients to directions: what distinguishes FGSM, PGD, MI-FGSM, TI-FGSM and Adam-PGD.

A `Direction` is a pair of pure functions in the shape of an optax transform, per example. The
attack multiplies its result with a step size, so a direction has unit size: Linf norm about 1 for
'linf', L2 norm 1 for 'l2', L1 norm 1 for 'l1'.

Contents: `Direction`, `steepest`, `momentum`, `adam`, `adamax`, `smoothed`.

Example:

    ti_mi = smoothed(momentum(norm='linf', decay=1.0), gaussian_weights(size=7, sigma=3.0))
"""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from medrobust_jax.core.balls import Room, ascent_direction
from medrobust_jax.core.filters import smooth
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, PyTree


class Direction(NamedTuple):
    """A rule that turns gradients into directions.

    Attributes:
      init: `images [B, ...] -> inner`, the rule's own arrays, with leading axis B.
      update: `(gradient [B, ...], inner, step [B], room) -> (direction [B, ...], inner)`; `step`
        counts looks from 1, `room` tells how far pixels may move.
    """

    init: Callable[[Array], PyTree]
    update: Callable[[Array, PyTree, Array, Room], tuple[Array, PyTree]]


def steepest(*, norm: str = 'linf') -> Direction:
    """The steepest ascent of the norm: the sign, or the normalized gradient (`ascent_direction`)."""
    return Direction(lambda images: (),
                     lambda gradient, inner, step, room: (ascent_direction(gradient, norm=norm, room=room), inner))


def momentum(*, norm: str = 'linf', decay: float = 1.0) -> Direction:
    """`m <- decay m + g / mean|g|`, then the steepest ascent along `m`.

    References: Dong et al., Boosting Adversarial Attacks with Momentum, CVPR 2018, eq. (6), with
    the mean in place of the sum of absolute values, which changes `m` by a constant factor only.

    Args:
      norm: which ball is climbed in.
      decay: mu >= 0; the paper's is 1.
    """
    def update(gradient: Array, inner: Array, step: Array, room: Room) -> tuple[Array, Array]:
        size = jnp.abs(gradient.reshape(gradient.shape[0], -1)).mean(axis=1)
        accumulated = decay * inner + gradient / per_example(jnp.where(size > 0, size, 1), gradient)
        return ascent_direction(accumulated, norm=norm, room=room), accumulated

    return Direction(jnp.zeros_like, update)


def adam(*, norm: str = 'linf', b1: float = 0.9, b2: float = 0.999, floor: float = 1e-12) -> Direction:
    """Adam's update on the images; for 'l2' and 'l1' its steepest ascent.

    `m <- b1 m + (1-b1) g`, `v <- b2 v + (1-b2) g^2`, both divided by `1 - b^t`, direction
    `m / (sqrt(v) + floor)` (Kingma and Ba, ICLR 2015). `floor` is far below Adam's usual 1e-8
    because input gradients are tiny.
    """
    def update(gradient: Array, inner: tuple[Array, Array], step: Array,
               room: Room) -> tuple[Array, tuple[Array, Array]]:
        first = b1 * inner[0] + (1 - b1) * gradient
        second = b2 * inner[1] + (1 - b2) * gradient**2
        count = per_example(step.astype(gradient.dtype), gradient)
        scaled = first / (1 - b1**count) / (jnp.sqrt(second / (1 - b2**count)) + floor)
        return scaled if norm == 'linf' else ascent_direction(scaled, norm=norm, room=room), (first, second)

    return Direction(lambda images: (jnp.zeros_like(images), jnp.zeros_like(images)), update)


def adamax(*, norm: str = 'linf', b1: float = 0.9, b2: float = 0.999, floor: float = 1e-8) -> Direction:
    """Adamax's update on the images, fed with the norm's steepest ascent in place of the gradient.

    `s = ascent_direction(g)`, `m <- b1 m + (1-b1) s`, `u <- max(b2 u, |s| + floor)`, direction
    `m / (1 - b1^t) / u` (Kingma and Ba, ICLR 2015, algorithm 2, with PyTorch's floor). For every norm it
    is about 1 per pixel, so that a step is a learning rate in pixel values; the attack projects.
    """
    def update(gradient: Array, inner: tuple[Array, Array], step: Array,
               room: Room) -> tuple[Array, tuple[Array, Array]]:
        fed = ascent_direction(gradient, norm=norm, room=room)
        first = b1 * inner[0] + (1 - b1) * fed
        largest = jnp.maximum(b2 * inner[1], jnp.abs(fed) + floor)
        count = per_example(step.astype(gradient.dtype), gradient)
        return first / (1 - b1**count) / largest, (first, largest)

    return Direction(lambda images: (jnp.zeros_like(images), jnp.zeros_like(images)), update)


def smoothed(direction: Direction, weights: tuple[float, ...]) -> Direction:
    """Smooths the gradient with a depthwise kernel first (TI-FGSM).

    References: Dong et al., Evading Defenses by Translation-Invariant Attacks, CVPR 2019, eq. (8).
    """
    return Direction(direction.init, lambda gradient, inner, step, room: direction.update(
        smooth(gradient, weights), inner, step, room))
