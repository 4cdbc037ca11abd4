"""One score from those of several layers: their mean, or a logistic regression.

Both are the same function of the scores, so that a detector learns from attacked images by a change of weights:

    s = sum_l w_l (s_l - center_l) / scale_l + bias

Contents: `averaged`, `regressed`, `combined`; `in_chunks`, for fitting.

Example:

    weights = averaged(scores_of_training_images)                       # [N, L]
    weights = regressed(weights, scores_of_clean, scores_of_attacked)   # the logit of 'is clean'
    scores = combined(weights, layer_scores)                            # [B, L] to [B]
"""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression

from medrobust_jax.core.blocks import in_blocks
from medrobust_jax.core.types import Array
from medrobust_jax.detectors.detector import cast, checked_fit
from medrobust_jax.detectors.scaling import scale_of

Weights = dict[str, np.ndarray]


def averaged(scores: Array | np.ndarray) -> Weights:
    """Weights that average the layers' standardized scores.

    Args:
      scores: `[N, L]` of clean training images.

    Returns:
      'center', 'scale' and 'weights' `[L]`, and 'bias', in the scores' dtype.
    """
    wide = checked_fit(scores, what='layer scores')
    center, scale = scale_of(wide)
    layers = wide.shape[1]
    weights = {'center': center, 'scale': scale, 'weights': np.full(layers, 1 / layers), 'bias': np.zeros(())}
    return cast(weights, scores.dtype)


def regressed(weights: Weights, clean: Array | np.ndarray, attacked: Array | np.ndarray, *,
              inverse_regularization: float) -> Weights:
    """Weights of a logistic regression of 'is clean' on the layers' standardized scores.

    Args:
      weights: from `averaged`; their center and scale are kept.
      clean: `[N, L]`, scores of clean images.
      attacked: `[M, L]`, scores of attacked images.
      inverse_regularization: C of scikit-learn, > 0.

    Returns:
      As `averaged`; the combined score is the logit of the probability of being clean, with as many attacked
      images as clean ones.
    """
    scores = np.concatenate([checked_fit(clean, what='layer scores of clean images'),
                             checked_fit(attacked, what='layer scores of attacked images')])
    is_clean = np.repeat([1, 0], [len(clean), len(attacked)])
    model: Any = LogisticRegression(C=inverse_regularization, class_weight='balanced', max_iter=1000, tol=1e-8)
    model.fit((scores - weights['center']) / weights['scale'], is_clean)
    learned = {'weights': model.coef_[0], 'bias': model.intercept_[0]}
    return {**weights, **cast(learned, weights['weights'].dtype)}


def combined(weights: Weights, scores: Array) -> Array:
    """The combined score `[B]` of layers' scores `[B, L]`."""
    z = (scores - weights['center']) / weights['scale']
    # Element by element: a product of so few numbers gains nothing from a matrix unit, and loses digits there.
    return (z * jnp.asarray(weights['weights'])).sum(axis=1) + weights['bias']


def in_chunks(score: Callable[..., Array]) -> Callable[..., Array]:
    """`score` compiled, and 64 images at a time, so that memory does not grow with the training set."""
    return jax.jit(in_blocks(score, width=64))


def check_regularization(inverse_regularization: float) -> None:
    """Raises ValueError unless it is finite and > 0."""
    if not (np.isfinite(inverse_regularization) and inverse_regularization > 0):
        raise ValueError(f'inverse_regularization = {inverse_regularization} must be finite and > 0')
