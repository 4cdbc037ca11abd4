"""A model that may refuse to answer: classifier and detector as one forward function.

Contents: `with_rejection`.

Example:

    forward = with_rejection(partial(evidence, module, params, model_state), detector, state, threshold.tau)
    outputs = forward(images, keys)
    answers = jnp.where(outputs['accepted'], outputs['logits'].argmax(-1), -1)
"""
from collections.abc import Callable

from medrobust_jax.core.types import Array, PyTree
from medrobust_jax.detectors.detector import Detector, Evidence


def with_rejection(forward_evidence: Callable[[Array], Evidence], detector: Detector, state: PyTree,
                   tau: float | Array) -> Callable[[Array, Array], dict[str, Array]]:
    """The model with its detector, as attacks and tasks see a model.

    Args:
      forward_evidence: `images [B, *spatial, C] -> evidence`, e.g. `models.forward.evidence` of a trained model.
      detector: whose `score` decides.
      state: what the detector was fitted to.
      tau: images of a lower score are rejected; so are those whose score is NaN.

    Returns:
      `(images, keys [B]) -> {'logits': [B, C], 'features': [B, D], 'score': [B], 'accepted': [B] bool}`; the keys
      are ignored. The features are there for attacks that aim at them.
    """

    def forward(images: Array, keys: Array) -> dict[str, Array]:
        del keys
        seen = forward_evidence(images)
        score = detector.score(state, seen)
        return {'logits': seen['logits'], 'features': seen['features'], 'score': score, 'accepted': score >= tau}

    return forward
