"""Mahalanobis distance of an image's features to the nearest class, layer by layer.

Contents: `mahalanobis`.

Example:

    detector = mahalanobis(use='layers')
    state = detector.fit(evidence_of_clean_training_images, labels, jax.random.key(0))
    state = detector.fit_adversarial(state, held_out_evidence, attacked_evidence)      # optional
    scores = detector.score(state, evidence)                   # [B]
"""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.core.checks import check_eps
from medrobust_jax.core.types import Array, PyTree
from medrobust_jax.detectors.detector import Detector, Evidence, as_scored, cast, checked_fit, require, state_dtype
from medrobust_jax.detectors.gaussian import check_shrinkage, fit_gaussians, whitened
from medrobust_jax.detectors.grouping import check_choice, class_of_rows
from medrobust_jax.detectors.layer_scores import averaged, check_regularization, combined, in_chunks, regressed

USES = ('layers', 'features')


def mahalanobis(*, use: str = 'layers', shrinkage: float = 0.01, nudge: float = 0.0,
                forward_evidence: Callable[[Array], Evidence] | None = None,
                inverse_regularization: float = 1.0) -> Detector:
    """Minus the squared Mahalanobis distance to the nearest class, combined over layers.

        s_l = max_c -(h_l - m_lc)^T S_l^-1 (h_l - m_lc)

    with class means m_lc and one covariance S_l for all classes. With `nudge`, h_l is that of an image moved
    along the gradient that raises s_l, `clip(x + nudge sign(grad s_l), 0, 1)`: clean images gain more by it.
    Fitted on clean images, the detector averages the layers' standardized scores; `fit_adversarial` replaces this
    by the paper's logistic regression.

    Args:
      use: 'layers' (every stage) or 'features' (the penultimate ones alone).
      shrinkage: rho >= 0 of `S + rho tr(S) / D I`, of standardized features; .01 is ours, the paper has none.
      nudge: >= 0, in units of [0, 1] images; the paper chooses it from 0 to .01 on attacked images.
      forward_evidence: `images -> evidence`; needed where nudge > 0. The detector then reads 'images', once more
        per layer, and ignores the features in the evidence that it is given.
      inverse_regularization: C of the logistic regression.

    Returns:
      The detector; fitted with labels; differentiable, except where the nearest class changes. With `nudge`
      gradients flow to the images, not to the features, and take the nudge as constant.

    Raises:
      ValueError: an option out of range, or a nudge without `forward_evidence`; when fitted: a class with fewer
        than 2 images, features that are not finite, or a singular covariance.

    References:
      Lee, Lee, Lee, Shin, "A simple unified framework for detecting out-of-distribution samples and adversarial
      attacks", NeurIPS 2018, equations 1 and 2, algorithm 1.
    Differs from the paper in: one layer per stage; the regression is not cross-validated.
    """
    check_choice(use, USES, "use of mahalanobis")
    check_shrinkage(shrinkage)
    check_eps(nudge, field='nudge')
    check_regularization(inverse_regularization)
    if nudge > 0 and forward_evidence is None:
        raise ValueError(f'nudge = {nudge} moves images along a gradient: give forward_evidence, or set it to 0')

    def fit(evidence: Evidence, labels: ArrayLike | None, key: Array) -> dict[str, PyTree]:
        del key
        groups, number = class_of_rows(evidence, labels, grouping='labels', what='mahalanobis', least=2)
        layers = tuple(_fit_layer(x, groups, number, shrinkage, f'layer {index}')
                       for index, x in enumerate(_layers(evidence, use)))
        return {'layers': layers, 'combination': averaged(score_all(layers, evidence))}

    def fit_adversarial(state: dict[str, PyTree], clean: Evidence, adversarial: Evidence) -> dict[str, PyTree]:
        of_clean, of_attacked = (score_all(state['layers'], each) for each in (clean, adversarial))
        weights = regressed(state['combination'], of_clean, of_attacked,
                            inverse_regularization=inverse_regularization)
        return {**state, 'combination': weights}

    def layer_scores(layers: tuple[PyTree, ...], evidence: Evidence) -> Array:
        forward = forward_evidence
        if not nudge or forward is None:
            return _scores(layers, _layers(evidence, use))
        of_images = lambda images: _scores(layers, _layers(forward(images), use))  # noqa: E731
        return _nudged(of_images, require(evidence, 'images'), nudge=nudge, num_layers=len(layers))

    def score_all(layers: tuple[PyTree, ...], evidence: Evidence) -> Array:
        names = ('images',) if nudge else (use,)
        read = {name: jax.tree.map(jnp.asarray, require(evidence, name)) for name in names}
        return in_chunks(lambda block: layer_scores(layers, block))(read)

    def score(state: dict[str, PyTree], evidence: Evidence) -> Array:
        return combined(state['combination'], layer_scores(state['layers'], evidence))

    return Detector('mahalanobis', fit, score, differentiable=True, fit_adversarial=fit_adversarial)


def _layers(evidence: Evidence, use: str) -> tuple[Any, ...]:
    read = require(evidence, use)
    return tuple(read) if use == 'layers' else (read,)


def _fit_layer(features: Any, groups: np.ndarray, number: int, shrinkage: float, what: str) -> PyTree:
    """The classes' means `[C, D]` and the common whitening `[1, D, D]` of one layer."""
    fitted = fit_gaussians(checked_fit(features, what=what), groups, number, tied=True, num_components=None,
                           shrinkage=shrinkage)
    return cast({'means': fitted.means, 'whitening': fitted.whitening}, state_dtype(features))


def _scores(layers: tuple[PyTree, ...], values: tuple[Any, ...]) -> Array:
    """Minus the squared distance to the nearest class in every layer, `[B, L]`."""
    if len(values) != len(layers):
        raise ValueError(f'mahalanobis was fitted on {len(layers)} layers, and scores {len(values)}: it belongs '
                         f'to another model')
    scores = []
    for index, (layer, x) in enumerate(zip(layers, values, strict=True)):
        h = as_scored(x, layer['means'].shape[1], what=f'layer {index}')
        scores.append(-(whitened(h, layer['means'], layer['whitening']) ** 2).sum(axis=-1).min(axis=1))
    return jnp.stack(scores, axis=1)


def _nudged(of_images: Callable[[Array], Array], images: Array, *, nudge: float, num_layers: int) -> Array:
    """The layers' scores `[B, L]`, each of images moved along its own gradient."""
    scores = []
    for layer in range(num_layers):
        gradient = jax.grad(lambda x, layer=layer: of_images(x)[:, layer].sum())(jax.lax.stop_gradient(images))
        moved = jnp.clip(images + nudge * jnp.sign(gradient), 0, 1)
        scores.append(of_images(moved)[:, layer])
    return jnp.stack(scores, axis=1)
