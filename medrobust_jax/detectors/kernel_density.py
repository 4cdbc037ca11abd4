"""Kernel density of an image's features among those of clean training images.

Contents: `kernel_density`.

Example:

    detector = kernel_density(grouping='labels', bandwidth=1.2)
    state = detector.fit(evidence_of_clean_training_images, labels, jax.random.key(0))
    scores = detector.score(state, evidence)                   # log-densities [B]
"""
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.core.types import Array
from medrobust_jax.detectors.detector import Detector, Evidence, as_scored, cast, checked_fit, require, state_dtype
from medrobust_jax.detectors.distances import squared_distances
from medrobust_jax.detectors.grouping import GROUPINGS, check_choice, class_of_rows, draw_rows
from medrobust_jax.detectors.scaling import scale_of, standardized

RULES = ('scott', 'silverman')


def kernel_density(*, grouping: str = 'labels', bandwidth: float | str = 'scott', standardize: bool = True,
                   num_reference: int | None = 2000) -> Detector:
    """The log of a Gaussian kernel density, of the class that the model predicts.

        s = log 1/n_c sum_{i: class i = c} N(z; z_i, b_c^2 I),      c = argmax f(x)

    Args:
      grouping: 'labels' (the training images of the predicted class, as in the paper), 'predicted' (those that the
        model predicts as it; needs no labels) or 'none' (all training images).
      bandwidth: b > 0, in units of the (standardized) features, or a rule for it: 'scott', n^(-1/(D+4)), or
        'silverman', (n (D+2)/4)^(-1/(D+4)), with n the number of stored images of the class.
      standardize: whether features are brought to mean 0 and deviation 1 first.
      num_reference: how many training images per class are stored, drawn at random; None for all.

    Returns:
      The detector; reads 'features' and 'logits'; differentiable, except where the predicted class changes.

    Raises:
      ValueError: an option out of range; when fitted: a class without images, or features that are not finite.

    References:
      Feinman, Curtin, Shintre, Gardner, "Detecting adversarial samples from artifacts", arXiv 1703.00410,
      section 5.1.
    Differs from the paper in: a rule in place of a bandwidth tuned per data set (1.2, .26 and 1.0 there, on raw
    features), standardized features, and a cap on the images stored, which are our choices. The paper combines the
    density with dropout uncertainty in a logistic regression, which is not done here.
    """
    check_choice(grouping, GROUPINGS, 'grouping of kernel_density')
    if isinstance(bandwidth, str):
        check_choice(bandwidth, RULES, 'rule for the bandwidth')
    elif not (np.isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f'bandwidth = {bandwidth} must be finite and > 0, or one of {", ".join(RULES)}')

    def fit(evidence: Evidence, labels: ArrayLike | None, key: Array) -> dict[str, np.ndarray]:
        features = checked_fit(require(evidence, 'features'), what='features')
        groups, number = class_of_rows(evidence, labels, grouping=grouping, what='kernel_density')
        center, scale = scale_of(features)
        # Without a common scale they are still moved to the origin, for the sake of rounding.
        scale = scale if standardize else np.ones_like(scale)
        rows = draw_rows(groups, key, most=num_reference)
        counts = np.bincount(groups[rows], minlength=number)
        widths = np.asarray([_bandwidth(bandwidth, count, features.shape[1]) for count in counts])
        state = {'center': center, 'scale': scale, 'classes': groups[rows], 'bandwidths': widths,
                 'reference': (features[rows] - center) / scale, 'log_counts': np.log(counts)}
        return cast(state, state_dtype(evidence['features']))

    def score(state: dict[str, Array], evidence: Evidence) -> Array:
        h = as_scored(require(evidence, 'features'), state['center'].shape[0], what='features')
        z = standardized(h, state['center'], state['scale'])
        predicted = jnp.argmax(require(evidence, 'logits'), axis=1) if len(state['log_counts']) > 1 else 0
        predicted = jnp.broadcast_to(jnp.asarray(predicted), z.shape[:1])
        width = jnp.asarray(state['bandwidths'])[predicted]
        of_class = jnp.asarray(state['classes']) == predicted[:, None]
        exponents = -squared_distances(z, state['reference']) / (2 * width[:, None] ** 2)
        total = jax.nn.logsumexp(jnp.where(of_class, exponents, -jnp.inf), axis=1)
        normalizer = z.shape[1] * (jnp.log(width) + .5 * jnp.log(2 * jnp.pi))
        return total - jnp.asarray(state['log_counts'])[predicted] - normalizer

    return Detector('kernel_density', fit, score, differentiable=True)


def _bandwidth(bandwidth: float | str, count: int, size: int) -> float:
    if not isinstance(bandwidth, str):
        return float(bandwidth)
    effective = count if bandwidth == 'scott' else count * (size + 2) / 4
    return float(effective ** (-1 / (size + 4)))
