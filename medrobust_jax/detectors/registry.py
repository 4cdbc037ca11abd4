"""Detectors by name, for configs and the command line.

Contents: `DETECTORS`, `create_detector`, and what an evaluation must know: `SUPERVISED`, `DIFFERENTIABLE`,
`NEEDS_LABELS`, `RUNS_MODEL`.

Example:

    detector = create_detector('gaussian', shrinkage=.1)
    detector = create_detector('feature_squeezing', forward_evidence=forward_evidence, bits=4)
"""
import inspect
from collections.abc import Callable
from typing import Any

from medrobust_jax.core.checks import check_options, did_you_mean
from medrobust_jax.core.types import Array
from medrobust_jax.detectors.detector import Detector, Evidence
from medrobust_jax.detectors.feature_squeezing import feature_squeezing
from medrobust_jax.detectors.gaussian import gaussian
from medrobust_jax.detectors.isolation_forest import isolation_forest
from medrobust_jax.detectors.kernel_density import kernel_density
from medrobust_jax.detectors.lid import lid
from medrobust_jax.detectors.mahalanobis import mahalanobis
from medrobust_jax.detectors.nearest_neighbors import nearest_neighbors
from medrobust_jax.detectors.one_class_svm import one_class_svm

DETECTORS: dict[str, Callable[..., Detector]] = {
    'gaussian': gaussian,
    'kernel_density': kernel_density,
    'nearest_neighbors': nearest_neighbors,
    'isolation_forest': isolation_forest,
    'one_class_svm': one_class_svm,
    'mahalanobis': mahalanobis,
    'lid': lid,
    'feature_squeezing': feature_squeezing,
}
# Detectors that can also learn from attacked images (`fit_adversarial`).
SUPERVISED = frozenset({'mahalanobis', 'lid'})
# Detectors whose score has gradients, for an attack that knows them.
DIFFERENTIABLE = frozenset(DETECTORS) - {'isolation_forest'}
# Detectors that are fitted with the true classes, unless an option says otherwise.
NEEDS_LABELS = frozenset({'kernel_density', 'mahalanobis'})
# Detectors that may ask the model again for other images; they take `forward` or `forward_evidence`.
RUNS_MODEL = frozenset({'mahalanobis', 'feature_squeezing'})
_FUNCTIONS = ('forward', 'forward_evidence')


def create_detector(name: str, /, *, forward_evidence: Callable[[Array], Evidence] | None = None,
                    **options: Any) -> Detector:
    """The detector called `name`.

    Args:
      name: a key of `DETECTORS`.
      forward_evidence: `images -> evidence`, for those in `RUNS_MODEL`; the others ignore it.
      **options: plain values, see the detector's function.

    Raises:
      ValueError: for an unknown name or option, suggesting the nearest, an option out of range, or a detector
        that runs the model and is not given it.
    """
    if name not in DETECTORS:
        did_you_mean(name, DETECTORS, 'detector')
    known = [option for option in inspect.signature(DETECTORS[name]).parameters if option not in _FUNCTIONS]
    check_options(options, known, f"option of detector '{name}'")
    if name == 'mahalanobis':
        options['forward_evidence'] = forward_evidence
    if name == 'feature_squeezing':
        if forward_evidence is None:
            raise ValueError('feature_squeezing asks the model about squeezed images: give forward_evidence')
        options['forward'] = lambda images: forward_evidence(images)['logits']
    return DETECTORS[name](**options)
