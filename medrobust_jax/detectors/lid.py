"""Local intrinsic dimensionality (LID) of an image's features, layer by layer.

Contents: `lid`, `local_dimension`.

Example:

    detector = lid(num_neighbors=20, batch_size=100)
    state = detector.fit(evidence_of_clean_training_images, None, jax.random.key(0))
    state = detector.fit_adversarial(state, held_out_evidence, attacked_evidence)      # optional
    scores = detector.score(state, evidence)                   # [B]
"""
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.core.types import Array, PyTree
from medrobust_jax.detectors.detector import Detector, Evidence, as_scored, cast, checked_fit, require, state_dtype
from medrobust_jax.detectors.distances import nearest_distances
from medrobust_jax.detectors.grouping import draw_rows
from medrobust_jax.detectors.layer_scores import averaged, check_regularization, combined, in_chunks, regressed

_SMALLEST_RATIO = 1e-6  # of distances: one of zero (the image itself is stored) counts as this


def lid(*, num_neighbors: int = 20, batch_size: int = 100, inverse_regularization: float = 1.0) -> Detector:
    """Minus the local intrinsic dimensionality, combined over layers.

        LID = -k / sum_{i=1}^k log(r_i / r_k),      s_l = -LID of layer l

    with r_i the distance to the i-th nearest of `batch_size` clean training images. Around attacked images
    features spread in more directions than around clean ones. Fitted on clean images, the detector averages the
    layers' standardized scores; `fit_adversarial` replaces this by the paper's logistic regression.

    Args:
      num_neighbors: k, from 2 to batch_size; 20 is the paper's.
      batch_size: stored training images, drawn once; 100 is the paper's.
      inverse_regularization: C of the logistic regression.

    Returns:
      The detector; reads 'layers'; differentiable, except where a neighbor changes.

    Raises:
      ValueError: an option out of range; when fitted: no more images than are stored, or features that are not
        finite.

    References:
      Ma et al., "Characterizing adversarial subspaces using local intrinsic dimensionality", ICLR 2018,
      equation 4 and algorithm 1.
    Differs from the paper in: neighbors are looked for in one stored batch, not in the batch that an image happens
    to come in, so that its score is its own; layers are pooled over space and one per stage; the regression is
    not cross-validated and sees noisy images only if the caller puts them among the clean ones.
    """
    if not 2 <= num_neighbors <= batch_size:
        raise ValueError(f'num_neighbors = {num_neighbors} must lie in 2..batch_size = {batch_size}')
    check_regularization(inverse_regularization)

    def layer_scores(reference: tuple[Array, ...], evidence: Evidence) -> Array:
        layers = require(evidence, 'layers')
        if len(layers) != len(reference):
            raise ValueError(f'lid was fitted on {len(reference)} layers, and scores {len(layers)}: it belongs to '
                             f'another model')
        values = [as_scored(x, r.shape[1], what=f'layer {index}')
                  for index, (x, r) in enumerate(zip(layers, reference, strict=True))]
        return -jnp.stack([local_dimension(x, r, num_neighbors=num_neighbors)
                           for x, r in zip(values, reference, strict=True)], axis=1)

    def fit(evidence: Evidence, labels: ArrayLike | None, key: Array) -> dict[str, PyTree]:
        del labels
        layers = [checked_fit(x, what=f'layer {index}', least=batch_size + 2)
                  for index, x in enumerate(require(evidence, 'layers'))]
        count = len(layers[0])
        stored = draw_rows(np.zeros(count, np.int32), key, most=batch_size)
        others = np.setdiff1d(np.arange(count), stored)  # a stored image is its own neighbor
        dtype = state_dtype(evidence['layers'][0])
        reference = cast(tuple(x[stored] for x in layers), dtype)
        score_all = in_chunks(lambda *layers: layer_scores(reference, {'layers': layers}))
        scores = score_all(*cast(tuple(x[others] for x in layers), dtype))
        return {'reference': reference, 'combination': averaged(scores)}

    def fit_adversarial(state: dict[str, PyTree], clean: Evidence, adversarial: Evidence) -> dict[str, PyTree]:
        score_all = in_chunks(lambda *layers: layer_scores(state['reference'], {'layers': layers}))
        of_clean, of_attacked = (score_all(*map(jnp.asarray, require(each, 'layers')))
                                 for each in (clean, adversarial))
        weights = regressed(state['combination'], of_clean, of_attacked,
                            inverse_regularization=inverse_regularization)
        return {**state, 'combination': weights}

    def score(state: dict[str, PyTree], evidence: Evidence) -> Array:
        return combined(state['combination'], layer_scores(state['reference'], evidence))

    return Detector('lid', fit, score, differentiable=True, fit_adversarial=fit_adversarial)


def local_dimension(features: Array, reference: Array | np.ndarray, *, num_neighbors: int) -> Array:
    """The maximum-likelihood estimate `-k / sum_i log(r_i / r_k)` of the dimension around each image.

    A distance of zero counts as 1e-6 of the largest one; where all k distances are equal, and the estimate is
    infinite, it is 1e6: both our choice.

    Args:
      features: `[B, D]`.
      reference: `[M, D]`, M >= k.
      num_neighbors: k >= 2.

    Returns:
      `[B]`, > 0.

    References: Amsaleg et al., KDD 2015; Ma et al., ICLR 2018, equation 4.
    """
    distances = nearest_distances(features, reference, num_neighbors=num_neighbors)
    largest = jnp.maximum(distances[:, -1:], jnp.finfo(distances.dtype).tiny)
    total = jnp.log(jnp.maximum(distances / largest, _SMALLEST_RATIO)).sum(axis=1)
    return num_neighbors / jnp.maximum(-total, num_neighbors * 1e-6)
