"""Where in an image a classifier's score comes from: Grad-CAM and integrated gradients, for whole batches.

Contents: `grad_cam`, `integrated_gradients` and its `Attribution`, `heat`, `baseline_image`, `BASELINES`, `RULES`;
`noise_of_same_size`, the control for explanations of attacked images.

Both explain one entry of the outputs per image, a logit. They say what the score depends on, not what is in the
image: a wrong answer has an explanation as well.

Example:

    heats = grad_cam(lambda x: maps_and_head(module, *variables, x), images, classes)             # [B, H, W]
    ig = integrated_gradients(forward, images, classes, baseline=jnp.zeros(images.shape[1:]), num_steps=64)
    assert jnp.abs(ig.gap).max() < .05 * jnp.abs(ig.rise).max()                                   # enough steps
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array

BASELINES = ('black', 'mean')
RULES = ('midpoint', 'trapezoid')
# images [B, H, W, C] -> (maps [B, h, w, K], maps -> logits [B, L]), as `models.explain.maps_and_head` gives it
CutNetwork = Callable[[Array], tuple[Array, Callable[[Array], Array]]]


class Attribution(NamedTuple):
    """Integrated gradients of a batch.

    Attributes:
      values: `[B, H, W, C]`, what each pixel adds to the score, compared with the baseline's pixel.
      rise: `[B]`, by how much the image's score exceeds the baseline's.
      gap: `[B]`, the sum of the values minus the rise: 0 with infinitely many steps (completeness).
    """

    values: Array
    rise: Array
    gap: Array


def grad_cam(cut: CutNetwork, images: Array, classes: Array) -> Array:
    """Gradient-weighted class activation maps.

        a_k = mean over pixels of d z_c / d A_k,        L = ReLU(sum_k a_k A_k)

    for the feature maps A_k and the logit z_c of the class that is explained. For a network that averages its
    maps and ends in one linear layer this is the ReLU of CAM (Zhou et al. 2016), up to scale.

    Args:
      cut: `images -> (maps, head)` with `head(maps)` the logits.
      images: `[B, H, W, C]` in [0, 1].
      classes: `[B]` int, the entry of the logits to explain.

    Returns:
      `[B, H, W]` in [0, 1], interpolated bilinearly to the images' size, then divided by its maximum; a map of
      zeros where nothing speaks for the class.

    References:
      Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization,
      ICCV 2017, equations 1 and 2.
    """
    maps, head = cut(images)
    gradients = jax.grad(lambda a: _score(head(a), classes).sum())(maps)
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    small = jax.nn.relu((weights * maps).sum(axis=-1))
    heats = jax.image.resize(small, images.shape[:-1], 'bilinear')
    largest = heats.max(axis=(1, 2), keepdims=True)
    return heats / jnp.where(largest > 0, largest, 1)


def integrated_gradients(forward: Callable[[Array], Array], images: Array, classes: Array, *, baseline: Array,
                         num_steps: int = 64, rule: str = 'midpoint') -> Attribution:
    """The gradient of the score, averaged along the straight line from a baseline to the image.

        IG = (x - x') * integral_0^1 grad z_c(x' + t (x - x')) dt

    Args:
      forward: `images -> logits [B, L]`, rows independent of each other.
      images: `[B, H, W, C]` in [0, 1].
      classes: `[B]` int, the entry of the logits to explain.
      baseline: `[H, W, C]`, x', what a pixel is compared with: where the image equals it the result is 0. See
        `baseline_image`.
      num_steps: gradients along the line, >= 1; 64 [ours], of the 20 to 300 that the paper found to suffice. The
        gap says whether they did.
      rule: 'midpoint', or 'trapezoid' (one gradient more).

    Returns:
      The attribution.

    Raises:
      ValueError: num_steps < 1 or an unknown rule.

    References:
      Sundararajan, Taly, Yan, Axiomatic attribution for deep networks, ICML 2017, equations 1 and 3.

    Differs from the paper in: the paper's sum takes the gradient at the end of each step; the rules here are of
    second order.
    """
    if num_steps < 1:
        raise ValueError(f'num_steps = {num_steps} of integrated gradients must be at least 1')
    if rule not in RULES:
        did_you_mean(rule, RULES, 'rule of integrated gradients')
    change = images - baseline
    gradient = jax.grad(lambda x: _score(forward(x), classes).sum())

    def add(total: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
        where, weight = place
        return total + weight * gradient(baseline + where * change), None

    places, weights = (jnp.asarray(part, images.dtype) for part in _quadrature(num_steps, rule))
    total, _ = jax.lax.scan(add, jnp.zeros_like(images), (places, weights))
    values = change * total
    start = jnp.broadcast_to(baseline, images.shape)
    rise = _score(forward(images), classes) - _score(forward(start), classes)
    return Attribution(values, rise, values.sum(axis=tuple(range(1, images.ndim))) - rise)


def heat(values: Array | np.ndarray) -> Array | np.ndarray:
    """Signed values `[B, H, W, C]` as a map `[B, H, W]` >= 0: their size, summed over the channels [ours]."""
    return abs(values).sum(axis=-1)


def baseline_image(kind: str, images: np.ndarray) -> np.ndarray:
    """What integrated gradients compare with, `[H, W, C]`.

    Args:
      kind: 'black' (zeros: black pixels then have no part in any explanation) or 'mean' (the mean of `images`:
        what tells an image from the others).
      images: `[N, H, W, C]`.

    Raises:
      ValueError: an unknown kind.
    """
    if kind not in BASELINES:
        did_you_mean(kind, BASELINES, 'baseline of integrated gradients')
    return np.zeros_like(images[0]) if kind == 'black' else images.mean(axis=0)


def noise_of_same_size(keys: Array, images: Array, attacked: Array) -> Array:
    """Images with the attack's own change scattered at random: the control for what an attack does to a map.

    Every value of `attacked - images` is moved to a random place and given a random sign, the other sign where
    the first would leave the box. So the noise has the attack's norm in L1, L2 and L-infinity alike, and none
    of its direction [ours].

    Args:
      keys: `[B]` typed keys.
      images: `[B, H, W, C]` in [0, 1].
      attacked: same shape, in [0, 1].

    Returns:
      `[B, H, W, C]` in [0, 1]. Norms are equal where no pixel was changed by more than 1/2; more than that may
      fit on neither side, and is clipped.
    """
    def one(key: Array, image: Array, other: Array) -> Array:
        place, sign = jax.random.split(key)
        sizes = jax.random.permutation(place, jnp.abs(other - image).ravel()).reshape(image.shape)
        up = jax.random.bernoulli(sign, shape=image.shape)
        up = jnp.where(image + sizes > 1, False, jnp.where(image - sizes < 0, True, up))
        return jnp.clip(image + jnp.where(up, sizes, -sizes), 0, 1)

    return jax.vmap(one)(keys, images, attacked)


def _score(logits: Array, classes: Array) -> Array:
    return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def _quadrature(num_steps: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Places in [0, 1] and weights that sum to 1."""
    if rule == 'midpoint':
        return (np.arange(num_steps) + .5) / num_steps, np.full(num_steps, 1 / num_steps)
    weights = np.full(num_steps + 1, 1 / num_steps)
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, num_steps + 1), weights
