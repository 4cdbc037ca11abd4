"""Unsupervised adversarial detection (UAD): multivariate Gaussians on penultimate features.

Contents: `gaussian`; `fit_gaussians` and `whitened`, which the Mahalanobis detector shares.

Example:

    detector = gaussian(grouping='predicted', combination='max', shrinkage=.01)
    state = detector.fit(evidence_of_clean_training_images, None, jax.random.key(0))
    scores = detector.score(state, evidence)                   # log-densities [B]
"""
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from medrobust_jax.core.types import Array
from medrobust_jax.detectors.detector import Detector, Evidence, as_scored, cast, checked_fit, require, state_dtype
from medrobust_jax.detectors.grouping import COMBINATIONS, GROUPINGS, check_choice, class_of_rows, combine
from medrobust_jax.detectors.scaling import scale_of


def gaussian(*, grouping: str = 'predicted', combination: str = 'max', tied: bool = False,
             num_components: int | None = None, shrinkage: float = 0.01) -> Detector:
    """UAD: the log-density of an image's features under Gaussians fitted on clean images.

        z = V^T (h - mean) / std;      s = log N(z; m_c, S_c + rho tr(S_c) / k I)

    with h the penultimate features, V the first k principal components of the standardized ones (or the
    identity), m_c and S_c mean and covariance (divided by the count) of a class, rho the shrinkage.

    Args:
      grouping: 'predicted' (a Gaussian per class, of the images that the model predicts as it: no labels are
        needed), 'labels' (of the images that have it) or 'none' (one Gaussian).
      combination: of the classes' log-densities: 'max', 'logsumexp' (of the mixture, weighted by the classes'
        shares) or 'predicted' (that of the predicted class).
      tied: whether classes share one covariance, that of the deviations from their own means.
      num_components: k, from 1 to min(N - 1, D); None keeps all D features.
      shrinkage: rho >= 0; 0 where classes have more images than k, and no feature is constant.

    Returns:
      The detector; reads 'features' and 'logits'; differentiable, except where the best (or predicted) class
      changes.

    Raises:
      ValueError: an option out of range; when fitted: a class with fewer than 2 images, features that are
        not finite, or a covariance that is singular.

    References:
      arXiv 2006.13555 and its predecessor (ISBI 2020) say "unsupervised" and "multivariate Gaussians"; no more of
      UAD was available, so that this is our specification, its constants included.
    """
    check_choice(grouping, GROUPINGS, 'grouping of gaussian')
    check_choice(combination, COMBINATIONS, 'combination of classes')
    check_shrinkage(shrinkage)

    def fit(evidence: Evidence, labels: ArrayLike | None, key: Array) -> dict[str, np.ndarray]:
        del key
        features = checked_fit(require(evidence, 'features'), what='features')
        groups, number = class_of_rows(evidence, labels, grouping=grouping, what='gaussian', least=2)
        fitted = fit_gaussians(features, groups, number, tied=tied, num_components=num_components,
                               shrinkage=shrinkage)
        return cast(fitted._asdict(), state_dtype(evidence['features']))

    def score(state: dict[str, Array], evidence: Evidence) -> Array:
        h = as_scored(require(evidence, 'features'), state['means'].shape[1], what='features')
        distances = (whitened(h, state['means'], state['whitening']) ** 2).sum(axis=-1)
        log_densities = state['log_normalizers'] - distances / 2
        return combine(log_densities, state['log_priors'], require(evidence, 'logits'), how=combination)

    return Detector('gaussian', fit, score, differentiable=True)


class Gaussians(NamedTuple):
    """C Gaussians.

    Attributes:
      means: `[C, D]`, of the features as they are.
      whitening: `[C, D, k]`, or `[1, D, k]` if tied: maps deviations from the mean to unit variance.
      log_normalizers: `[C]`, or `[1]` if tied: the log-density of a mean.
      log_priors: `[C]`, logarithms of the classes' shares.
    """

    means: np.ndarray
    whitening: np.ndarray
    log_normalizers: np.ndarray
    log_priors: np.ndarray


def fit_gaussians(features: np.ndarray, groups: np.ndarray, number: int, *, tied: bool,
                  num_components: int | None, shrinkage: float) -> Gaussians:
    """A Gaussian for each of `number` groups of features, see `gaussian`.

    Standardizing, projecting and whitening are linear, so that they are kept as one matrix, made in float64:
    what is left to float32 is one product with deviations from the class's mean.

    Args:
      features: `[N, D]`, float64.
      groups: `[N]` int in [0, number), each with at least 2 rows.
      number: of groups.
      tied: whether they share one covariance.
      num_components: k, or None for D.
      shrinkage: rho >= 0.
    """
    center, scale = scale_of(features)
    projection = _principal((features - center) / scale, num_components) / scale[:, None]
    counts = np.bincount(groups, minlength=number)
    means = np.stack([features[groups == group].mean(axis=0) for group in range(number)])
    deviations = (features - means[groups]) @ projection
    parts = [deviations] if tied else [deviations[groups == group] for group in range(number)]
    factors = [_cholesky(part, shrinkage, 'all classes' if tied else f'class {group}')
               for group, part in enumerate(parts)]
    size = projection.shape[1]
    inverses = [linalg.solve_triangular(factor, np.eye(size), lower=True) for factor in factors]
    whitening = np.stack([projection @ inverse.T for inverse in inverses])
    log_normalizers = [-size / 2 * np.log(2 * np.pi) - np.log(np.diag(factor)).sum() for factor in factors]
    return Gaussians(means, whitening, np.asarray(log_normalizers), np.log(counts / counts.sum()))


def whitened(features: Array, means: Array | np.ndarray, whitening: Array | np.ndarray) -> Array:
    """Features `[B, D]` as coordinates `[B, C, k]` around every mean, with unit variance in every direction."""
    deviations = features[:, None] - means
    # 'highest': tensor cores would round the factors to 10 bits, and directions of small variance to nothing.
    if whitening.shape[0] == 1:
        return jnp.einsum('bcd,dk->bck', deviations, jnp.asarray(whitening)[0], precision='highest')
    return jnp.einsum('bcd,cdk->bck', deviations, jnp.asarray(whitening), precision='highest')


def _principal(z: np.ndarray, num_components: int | None) -> np.ndarray:
    """The first principal directions `[D, k]` of standardized features `[N, D]`; the identity for None."""
    most = min(len(z) - 1, z.shape[1])
    if num_components is None:
        return np.eye(z.shape[1])
    if not 1 <= num_components <= most:
        raise ValueError(f'num_components = {num_components} must lie in 1..{most} for {len(z)} images of '
                         f'{z.shape[1]} features')
    _, vectors = linalg.eigh(z.T @ z / len(z))
    return vectors[:, ::-1][:, :num_components]


def _cholesky(deviations: np.ndarray, shrinkage: float, what: str) -> np.ndarray:
    """The lower factor `[k, k]` of the shrunk covariance of deviations `[n, k]`."""
    size = deviations.shape[1]
    covariance = deviations.T @ deviations / len(deviations)
    covariance += shrinkage * np.trace(covariance) / size * np.eye(size)
    try:
        factor = linalg.cholesky(covariance, lower=True)
        singular = np.diag(factor).min() <= 1e-6 * np.diag(factor).max()
    except linalg.LinAlgError:
        singular = True
    if singular:
        raise ValueError(f'the covariance of {what}, {size} x {size} from {len(deviations)} images, is singular: '
                         f'set shrinkage > {shrinkage}, or num_components below {min(size, len(deviations))}')
    return factor


def check_shrinkage(shrinkage: float) -> None:
    """Raises ValueError unless it is finite and >= 0."""
    if not (np.isfinite(shrinkage) and shrinkage >= 0):
        raise ValueError(f'shrinkage = {shrinkage} must be finite and >= 0')
