"""Feature squeezing: how far a prediction moves when the image is simplified.

Contents: `feature_squeezing`.

Example:

    detector = feature_squeezing(forward=lambda images: model(params, images), bits=5, median=2)
    state = detector.fit(evidence, None, key)                  # nothing to fit
    scores = detector.score(state, evidence)                   # minus L1 distances [B], in [-2, 0]
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from medrobust_jax.core.filters import median_filter
from medrobust_jax.core.types import Array, PyTree
from medrobust_jax.detectors.detector import Detector, Evidence, require
from medrobust_jax.detectors.squeezers import non_local_means, reduce_bit_depth


def feature_squeezing(*, forward: Callable[[Array], Array], bits: int | None = 5, median: int | None = 2,
                      search: int | None = 13, patch: int = 3, strength: float = 2 / 255) -> Detector:
    """Minus the largest L1 distance between the predictions for an image and for its squeezed versions.

        s = -max_q |softmax f(x) - softmax f(q(x))|_1

    Args:
      forward: `images -> logits`; asked once per squeezer.
      bits: of the reduced bit depth, or None to leave this squeezer out.
      median: side of the median filter's window, or None.
      search: side of the window of non-local means, odd, or None.
      patch: side of their patches, odd.
      strength: their filter strength, > 0, in units of [0, 1] images.

    Returns:
      The detector; reads 'logits' and 'images'; its state is empty. Differentiable with respect to the logits
      and, through the model, the images; the rounding to fewer bits passes gradients straight through.

    Raises:
      ValueError: an option out of range, or no squeezer left.

    References:
      Xu, Evans, Qi, "Feature squeezing: detecting adversarial examples in deep neural networks", NDSS 2018,
      sections 3 and 5; 5 bits, a 2 x 2 median and non-local means 13-3-2 are their choice for CIFAR-10 (from
      memory).
    Differs from the paper in: non-local means compare patches over all channels, where OpenCV's go by a color
    space and approximate.
    """
    squeezers: list[Callable[[Array], Array]] = []
    if bits is not None:
        squeezers.append(lambda images: reduce_bit_depth(images, bits=bits))
    if median is not None:
        squeezers.append(lambda images: median_filter(images, size=median))
    if search is not None:
        squeezers.append(lambda images: non_local_means(images, search=search, patch=patch, strength=strength))
    if not squeezers:
        raise ValueError('feature_squeezing without a squeezer: set bits, median or search')

    def fit(evidence: Evidence, labels: ArrayLike | None, key: Array) -> dict[str, PyTree]:
        del evidence, labels, key
        return {}

    def score(state: dict[str, PyTree], evidence: Evidence) -> Array:
        del state
        images = jnp.asarray(require(evidence, 'images'))
        before = jax.nn.softmax(jnp.asarray(require(evidence, 'logits')))
        moved = [jnp.abs(jax.nn.softmax(forward(squeeze(images))) - before).sum(axis=-1) for squeeze in squeezers]
        return -jnp.stack(moved).max(axis=0)

    return Detector('feature_squeezing', fit, score, differentiable=True)
