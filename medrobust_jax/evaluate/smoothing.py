r"""Randomized smoothing: a classifier that is certified in L2, whatever it is made of.

    g(x) = argmax_c P[f(x + n) = c],    n ~ N(0, sigma^2 I)

If class c wins with probability at least p > 1/2, then g is c everywhere within sigma Phi^-1(p) of x.
The probability is bounded from counts of noisy passes, so a certificate holds with confidence
1 - alpha, for each image by itself. Noise leaves the box and is not clipped: the certificate is about
x + delta for any delta.

Contents: `Certificates`, `certify`, `predict`, `noisy_counts`, `lower_bound`, `decide`, `ABSTAIN`.

Example:

    found = certify(forward, variables, images, keys, sigma=.25, num_samples=1000, layout=layout)
    certified = (found.predictions == labels) & (found.radii > .5)    # right everywhere within .5

References:
  Cohen, Rosenfeld, Kolter, Certified Adversarial Robustness via Randomized Smoothing, ICML 2019:
  theorem 1 and section 3.2 (CERTIFY, PREDICT). Clopper and Pearson, Biometrika 1934.
"""
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from medrobust_jax.core import rng
from medrobust_jax.core.blocks import in_blocks, on_each_device
from medrobust_jax.core.checks import check_images
from medrobust_jax.core.types import Array, PyTree
from medrobust_jax.evaluate.programs import Layout, ModelForward, in_chunks

ABSTAIN = -1
_SELECT, _ESTIMATE = 0x5E1, 0xE57  # keep the draws that choose a class apart from those that count it


class Certificates(NamedTuple):
    """What is certified of each image.

    Attributes:
      predictions: `[N]` int, the smoothed classifier's class; `ABSTAIN` where it is not sure.
      radii: `[N]`, the L2 radius within which the class is certified; 0 where it abstains.
      lower: `[N]`, the lower bound of the class's probability under noise.
      counts: `[N, C]` int, the noisy passes that named each class.
    """

    predictions: np.ndarray
    radii: np.ndarray
    lower: np.ndarray
    counts: np.ndarray


def certify(forward: ModelForward, variables: PyTree, images: np.ndarray, keys: Array, *, sigma: float,
            layout: Layout, num_selection: int = 100, num_samples: int = 1000, alpha: float = 0.001,
            draws_at_once: int = 8) -> Certificates:
    """Certifies the smoothed classifier's class on each image, or abstains.

    `num_selection` passes choose a class, `num_samples` others bound its probability.

    Args:
      forward: `(variables, images, keys) -> logits [B, C]`.
      variables: the model's weights.
      images: `[N, *spatial, C]` in [0, 1].
      keys: `[N]` typed keys, from which all noise is drawn.
      sigma: of the noise, > 0, in units of [0, 1] pixels.
      layout: block width, chunk and devices.
      num_selection: n0 >= 1; 100 in the paper.
      num_samples: n >= 1; 100000 in the paper. No radius exceeds sigma Phi^-1(alpha^(1/n)): 2.5 sigma for 1000.
      alpha: the probability that a certificate is wrong; .001 in the paper.
      draws_at_once: noisy copies of an image in one batch; changes no draw.

    Returns:
      The certificates.

    Raises:
      ValueError: for values out of range, images that break the data contract, or outputs that are no logits.
    """
    _check(alpha, num_selection, num_samples)
    shared = {'sigma': sigma, 'layout': layout, 'draws_at_once': draws_at_once}
    model = (forward, variables, images)
    chosen = noisy_counts(*model, rng.fold(keys, _SELECT), num_samples=num_selection, **shared).argmax(axis=1)
    counts = noisy_counts(*model, rng.fold(keys, _ESTIMATE), num_samples=num_samples, **shared)
    lower = lower_bound(counts[np.arange(len(counts)), chosen], num_samples, alpha=alpha)
    sure = lower > .5
    radii = np.where(sure, sigma * special.ndtri(np.where(sure, lower, .5)), 0.0)
    return Certificates(np.where(sure, chosen, ABSTAIN), radii, lower, counts)


def predict(forward: ModelForward, variables: PyTree, images: np.ndarray, keys: Array, *, sigma: float,
            layout: Layout, num_samples: int = 1000, alpha: float = 0.001, draws_at_once: int = 8) -> np.ndarray:
    """The smoothed classifier's class `[N]`, `ABSTAIN` where the winner may be another; arguments as `certify`.

    A class that is returned differs from g(x) with probability alpha at most.
    """
    _check(alpha, num_samples)
    counts = noisy_counts(forward, variables, images, rng.fold(keys, _ESTIMATE), sigma=sigma, layout=layout,
                          num_samples=num_samples, draws_at_once=draws_at_once)
    return decide(counts, alpha=alpha)


def decide(counts: np.ndarray, *, alpha: float) -> np.ndarray:
    """The most frequent class `[N]` of `counts` `[N, C]`, `ABSTAIN` unless it beats the second significantly.

    The test is binomial, two-sided, of the two counts against a fair coin.
    """
    second, first = np.sort(counts, axis=1)[:, -2:].T
    p_value = np.minimum(1, 2 * special.bdtr(second, first + second, .5))
    return np.where(p_value <= alpha, counts.argmax(axis=1), ABSTAIN)


def lower_bound(successes: np.ndarray, n: int, *, alpha: float) -> np.ndarray:
    """Clopper and Pearson's one-sided bound: the p at which so many successes or more have a chance of alpha."""
    k = np.asarray(successes)
    return np.where(k > 0, special.betaincinv(np.maximum(k, 1), n - k + 1, alpha), 0.0)


def noisy_counts(forward: ModelForward, variables: PyTree, images: np.ndarray, keys: Array, *, sigma: float,
                 layout: Layout, num_samples: int, draws_at_once: int = 8) -> np.ndarray:
    """How many of `num_samples` noisy passes name each class, `[N, C]`; arguments as `certify`.

    Draw i of an image is a function of its key and i, so that counts do not depend on the batch, its order, or
    `draws_at_once` (but where rounding decides between two logits). A pass whose logits are not finite names none.
    """
    check_images(images, what='images to be smoothed over')
    if not 0 < sigma < np.inf or draws_at_once < 1:
        raise ValueError(f'smoothing needs a finite sigma > 0, in units of [0, 1] pixels, and draws_at_once >= 1, '
                         f'not {sigma} and {draws_at_once}')
    shape = getattr(jax.eval_shape(forward, variables, images[:1], keys[:1]), 'shape', ())
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(f'smoothing needs logits [batch, classes >= 2], not outputs of shape {shape}')
    program = in_chunks(_counting(forward, layout, shape[1], draws_at_once), layout)
    return program((variables, jnp.float32(sigma), jnp.int32(num_samples)), keys, images)


@lru_cache(maxsize=16)
def _counting(forward: ModelForward, layout: Layout, num_classes: int, at_once: int) -> Callable[..., Array]:
    """The compiled `((variables, sigma, num_samples), keys [chunk], images) -> counts [chunk, C]`."""
    def count(shared: tuple[PyTree, Array, Array], keys: Array, images: Array) -> Array:
        variables, sigma, num_samples = shared
        repeated = jnp.repeat(images, at_once, axis=0)

        def add(turn: Array, counts: Array) -> Array:
            draws = turn * at_once + jnp.arange(at_once)
            own = jax.vmap(lambda key: jax.vmap(lambda draw: jax.random.fold_in(key, draw))(draws))(keys)
            noise_keys, model_keys = rng.split_each(own.reshape(-1), 2)
            noisy = repeated + sigma.astype(images.dtype) * rng.normal(noise_keys, images.shape[1:], images.dtype)
            logits = forward(variables, noisy, model_keys)
            named = jax.nn.one_hot(logits.argmax(axis=1), num_classes, dtype=jnp.int32)
            named = named * jnp.isfinite(logits).all(axis=1)[:, None]
            due = (draws < num_samples)[None, :, None]
            return counts + (named.reshape(-1, at_once, num_classes) * due).sum(axis=1)

        start = jnp.zeros((len(images), num_classes), jnp.int32)
        return jax.lax.fori_loop(0, -(-num_samples // at_once), add, start)

    def rows(shared: tuple[PyTree, Array, Array], keys: Array, images: Array) -> Array:
        return in_blocks(lambda k, x: count(shared, k, x), width=layout.width)(keys, images)

    return jax.jit(on_each_device(rows, layout.mesh, num_shared=1))


def _check(alpha: float, *numbers: int) -> None:
    if not 0 < alpha < 1 or min(numbers) < 1:
        raise ValueError(f'smoothing needs alpha in (0, 1) and at least one draw, not {alpha} and {numbers}')
