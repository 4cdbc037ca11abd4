"""Distance of an image's features to their nearest neighbors among clean training images.

Contents: `nearest_neighbors`.

Example:

    detector = nearest_neighbors(num_neighbors=50, statistic='kth', normalize=True)
    state = detector.fit(evidence_of_clean_training_images, None, jax.random.key(0))
    scores = detector.score(state, evidence)                   # minus distances [B]
"""
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.core.types import Array
from medrobust_jax.detectors.detector import Detector, Evidence, as_scored, cast, checked_fit, require, state_dtype
from medrobust_jax.detectors.distances import nearest_distances
from medrobust_jax.detectors.grouping import check_choice, draw_rows
from medrobust_jax.detectors.scaling import scale_of, standardized

STATISTICS = ('mean', 'kth')
_TINY = 1e-12  # the shortest length that features are divided by


def nearest_neighbors(*, num_neighbors: int = 10, statistic: str = 'mean', normalize: bool = False,
                      num_reference: int | None = 5000) -> Detector:
    """Minus the Euclidean distance to the nearest stored features.

    Args:
      num_neighbors: k, from 1 to the number of stored images.
      statistic: 'mean' of the k distances, or the 'kth' alone.
      normalize: False: features are standardized; True: divided by their length, as in the paper.
      num_reference: how many training images are stored, drawn at random; None for all.

    Returns:
      The detector; reads 'features'; differentiable, except where a neighbor changes.

    Raises:
      ValueError: an option out of range; when fitted: fewer stored images than neighbors, or features that are
        not finite.

    References:
      Sun, Ming, Zhu, Li, "Out-of-distribution detection with deep nearest neighbors", ICML 2022, section 3
      (normalize, 'kth', k 50 there for CIFAR-10).
    Differs from the paper in: the defaults, which are ours.
    """
    check_choice(statistic, STATISTICS, 'statistic of nearest_neighbors')
    if num_neighbors < 1:
        raise ValueError(f'num_neighbors = {num_neighbors} must be at least 1')

    def fit(evidence: Evidence, labels: ArrayLike | None, key: Array) -> dict[str, np.ndarray]:
        del labels
        features = checked_fit(require(evidence, 'features'), what='features')
        rows = draw_rows(np.zeros(len(features), np.int32), key, most=num_reference)
        if num_neighbors > len(rows):
            raise ValueError(f'num_neighbors = {num_neighbors} is more than the {len(rows)} stored images: lower '
                             f'it, or raise num_reference or the number of training images')
        center, scale = scale_of(features)
        if normalize:
            center, scale = np.zeros_like(center), np.ones_like(scale)
        reference = (features[rows] - center) / scale
        if normalize:
            reference /= np.maximum(np.linalg.norm(reference, axis=1, keepdims=True), _TINY)
        state = {'center': center, 'scale': scale, 'reference': reference}
        return cast(state, state_dtype(evidence['features']))

    def score(state: dict[str, Array], evidence: Evidence) -> Array:
        h = as_scored(require(evidence, 'features'), state['center'].shape[0], what='features')
        z = standardized(h, state['center'], state['scale'])
        if normalize:
            z = z / jnp.sqrt(jnp.maximum((z ** 2).sum(axis=1, keepdims=True), _TINY ** 2))
        distances = nearest_distances(z, state['reference'], num_neighbors=num_neighbors)
        return -(distances.mean(axis=1) if statistic == 'mean' else distances[:, -1])

    return Detector('nearest_neighbors', fit, score, differentiable=True)
