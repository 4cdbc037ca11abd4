"""One-class support vector machine on an image's features.

Contents: `one_class_svm`.

Example:

    detector = one_class_svm(nu=.1)
    state = detector.fit(evidence_of_clean_training_images, None, jax.random.key(0))
    scores = detector.score(state, evidence)                   # scikit-learn's decision_function [B]
"""
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from sklearn.svm import OneClassSVM

from medrobust_jax.core.types import Array
from medrobust_jax.detectors.detector import Detector, Evidence, as_scored, cast, checked_fit, require, state_dtype
from medrobust_jax.detectors.distances import squared_distances
from medrobust_jax.detectors.grouping import draw_rows
from medrobust_jax.detectors.scaling import scale_of, standardized


def one_class_svm(*, nu: float = 0.1, gamma: float | None = None, num_reference: int | None = 5000) -> Detector:
    """The decision function of a one-class SVM with a Gaussian kernel, fitted by scikit-learn and scored in JAX.

        s = sum_i a_i exp(-gamma |z - z_i|^2) - offset,      z standardized features, z_i support vectors

    Far from all training images the score is flat, and so is its gradient.

    Args:
      nu: in (0, 1]: at least this share of the training images are support vectors, at most this share outside.
        .1 is ours.
      gamma: > 0, or None for 1 / (D var(z)), scikit-learn's 'scale'.
      num_reference: how many training images it is fitted on, drawn at random; None for all. Time grows with
        the square.

    Returns:
      The detector; reads 'features'; differentiable.

    Raises:
      ValueError: an option out of range; when fitted: features that are not finite.

    References:
      Schoelkopf, Platt, Shawe-Taylor, Smola, Williamson, "Estimating the support of a high-dimensional
      distribution", Neural Computation 2001, equation 3.10.
    """
    if not 0 < nu <= 1:
        raise ValueError(f'nu = {nu} must lie in (0, 1]')
    if gamma is not None and not (np.isfinite(gamma) and gamma > 0):
        raise ValueError(f'gamma = {gamma} must be finite and > 0, or None')

    def fit(evidence: Evidence, labels: ArrayLike | None, key: Array) -> dict[str, np.ndarray]:
        del labels
        features = checked_fit(require(evidence, 'features'), what='features')
        rows = draw_rows(np.zeros(len(features), np.int32), key, most=num_reference)
        center, scale = scale_of(features[rows])
        z = (features[rows] - center) / scale
        width = 1 / (z.shape[1] * z.var()) if gamma is None else gamma
        options: dict[str, Any] = {'nu': nu, 'gamma': width}
        machine = OneClassSVM(**options).fit(z)
        state = {'center': center, 'scale': scale, 'support': machine.support_vectors_,
                 'weights': machine.dual_coef_[0], 'intercept': machine.intercept_[0], 'gamma': np.asarray(width)}
        return cast(state, state_dtype(evidence['features']))

    def score(state: dict[str, Array], evidence: Evidence) -> Array:
        h = as_scored(require(evidence, 'features'), state['center'].shape[0], what='features')
        z = standardized(h, state['center'], state['scale'])
        kernel = jnp.exp(-state['gamma'] * squared_distances(z, state['support']))
        total = jnp.einsum('bm,m->b', kernel, jnp.asarray(state['weights']), precision='highest')
        return total + state['intercept']

    return Detector('one_class_svm', fit, score, differentiable=True)
