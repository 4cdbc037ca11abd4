"""What every detector of adversarial images is, and what it reads.

Contents: `Evidence`, `Detector`; and for those who write one: `require`, `checked_fit`, `as_scored`,
`state_dtype`, `cast`.

Fitting is done once, on the host, in float64; scores are computed in JAX, so that they run inside attacks, and a
row's score depends on no other row.

Example:

    forward = partial(evidence, module, params, model_state)       # models.forward.evidence
    detector = gaussian(shrinkage=.01)
    state = detector.fit(forward(train_images), train_labels, jax.random.key(0))
    scores = detector.score(state, forward(images))                 # [B], higher = more like clean images
"""
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.core.types import Array, PyTree

# What a model computes of B images: 'logits' [B, C]; 'features' [B, D], pooled, what its last layer reads;
# 'layers', a tuple of [B, D_l], the pooled outputs of every stage; 'images' [B, *spatial, C] in [0, 1].
# A detector asks for those it needs and ignores the others.
Evidence = Mapping[str, Any]


class Detector(NamedTuple):
    """How to tell clean images from others, as pure functions.

    Attributes:
      name: as configs spell it.
      fit: `(evidence, labels [N] or None, key) -> state`, on clean training images alone: no attack is known.
        The state is a mapping of arrays, or of tuples and mappings of them.
      score: `(state, evidence) -> [B]`, **higher = more like clean images**. Rows do not depend on each other.
      differentiable: whether gradients flow through `score` to the evidence, as an attack that knows the detector
        needs them.
      fit_adversarial: `(state, clean, adversarial) -> state`, for those that also learn from attacked images:
        `state` as it came from `fit`, and the evidence of clean images that `fit` has not seen (its own ones
        look cleaner than any other) and of attacked ones. None for the unsupervised.
    """

    name: str
    fit: Callable[[Evidence, ArrayLike | None, Array], PyTree]
    score: Callable[[PyTree, Evidence], Array]
    differentiable: bool
    fit_adversarial: Callable[[PyTree, Evidence, Evidence], PyTree] | None = None


def require(evidence: Evidence, name: str) -> Any:
    """The entry called `name`.

    Raises:
      ValueError: the evidence lacks it, or it is an empty tuple.
    """
    if name not in evidence or (isinstance(evidence[name], tuple) and not evidence[name]):
        raise ValueError(f"the detector reads '{name}', and the evidence holds {sorted(evidence)}"
                         f"{' with no layers' if name in evidence else ''}; see models.forward.evidence")
    return evidence[name]


def checked_fit(values: ArrayLike, *, what: str, least: int = 2) -> np.ndarray:
    """Features to fit on, `[N, D]`, as float64 on the host.

    Raises:
      ValueError: not a matrix, fewer rows than `least`, or a row that is not finite, with its number.
    """
    wide = np.asarray(values)
    wide = np.asarray(wide, np.float64)
    if wide.ndim != 2 or len(wide) < least or not wide.shape[1]:
        raise ValueError(f'{what}: a detector is fitted on [N, D] with at least {least} rows, got {wide.shape}')
    finite = np.isfinite(wide).all(axis=1)
    if not finite.all():
        raise ValueError(f'{what}: row {int(np.argmin(finite))} holds NaN or inf ({int((~finite).sum())} of '
                         f'{len(wide)} rows do); the model is broken there, or its input is')
    return wide


def state_dtype(values: Any) -> np.dtype:
    """The dtype of a state: the features' own, but never below float32, nor above what JAX is set to."""
    return np.dtype(jax.dtypes.canonicalize_dtype(jnp.promote_types(values.dtype, jnp.float32)))


def as_scored(values: Any, size: int, *, what: str) -> Array:
    """Features to score, `[B, size]`, in float32 or wider.

    Raises:
      ValueError: at trace time, for another number of features than the detector was fitted on.
    """
    values = jnp.asarray(values)
    if values.ndim != 2 or values.shape[1] != size:
        raise ValueError(f'{what}: the detector was fitted on [N, {size}], and scores {values.shape}: it belongs '
                         f'to another model')
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def cast(tree: PyTree, dtype: np.dtype) -> PyTree:
    """The tree's floating-point arrays in `dtype`, on the host; integers as int32."""
    def of(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array.astype(dtype if np.issubdtype(array.dtype, np.floating) else np.int32)

    return jax.tree.map(of, tree)
