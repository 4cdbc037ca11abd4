"""Isolation forest on an image's features: how few random splits set it apart from clean training images.

Contents: `isolation_forest`.

Example:

    detector = isolation_forest(num_trees=100)
    state = detector.fit(evidence_of_clean_training_images, None, jax.random.key(0))
    scores = detector.score(state, evidence)                   # scikit-learn's score_samples [B]
"""
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from sklearn.ensemble import IsolationForest

from medrobust_jax.core.types import Array
from medrobust_jax.detectors.detector import Detector, Evidence, as_scored, cast, checked_fit, require, state_dtype
from medrobust_jax.detectors.grouping import seed_of


def isolation_forest(*, num_trees: int = 100, num_samples: int = 256) -> Detector:
    """Minus the anomaly score of an isolation forest, fitted by scikit-learn and scored in JAX.

        s = -2^(-mean depth / c(n)),      depth = splits passed + c(training images in the leaf)

    with c(n) = 2 H(n-1) - 2 (n-1)/n, the mean depth of an unsuccessful search among n, H(i) taken as ln i + .5772.

    Args:
      num_trees: >= 1.
      num_samples: n, training images that every tree is grown on, drawn at random; at most all.

    Returns:
      The detector; reads 'features'. Not differentiable: scores are constant between the splits.

    Raises:
      ValueError: an option out of range; when fitted: features that are not finite.

    References:
      Liu, Ting, Zhou, "Isolation forest", ICDM 2008, equations 1 and 2; 100 trees of 256 are theirs.
    """
    if num_trees < 1 or num_samples < 2:
        raise ValueError(f'num_trees = {num_trees} must be at least 1 and num_samples = {num_samples} at least 2')

    def fit(evidence: Evidence, labels: ArrayLike | None, key: Array) -> dict[str, np.ndarray]:
        del labels
        features = checked_fit(require(evidence, 'features'), what='features')
        options: dict[str, Any] = {'max_samples': min(num_samples, len(features)), 'random_state': seed_of(key)}
        forest = IsolationForest(n_estimators=num_trees, **options)
        forest.fit(features)
        trees = [_exported(tree.tree_, columns)
                 for tree, columns in zip(forest.estimators_, forest.estimators_features_, strict=True)]
        nodes = max(len(tree['feature']) for tree in trees)
        state = {name: np.stack([np.pad(tree[name], (0, nodes - len(tree[name]))) for tree in trees])
                 for name in trees[0]}
        state['average_depth'] = _average_depth(np.asarray([forest.max_samples_]))[0]
        state['longest_path'] = np.asarray(max(tree.tree_.max_depth for tree in forest.estimators_))
        splits = np.concatenate([tree['feature'][tree['left'] != np.arange(len(tree['left']))] for tree in trees])
        state['splits_per_feature'] = np.bincount(splits, minlength=features.shape[1])
        thresholds = _rounded_down(state.pop('threshold'))
        return {**cast(state, state_dtype(evidence['features'])), 'threshold': thresholds}

    def score(state: dict[str, Array], evidence: Evidence) -> Array:
        h = as_scored(require(evidence, 'features'), state['splits_per_feature'].shape[0], what='features')
        depths = _depths(state, jax.lax.stop_gradient(h).astype(jnp.float32))
        return -2.0 ** (-depths.mean(axis=1) / jnp.asarray(state['average_depth']))

    return Detector('isolation_forest', fit, score, differentiable=False)


def _exported(tree: Any, columns: np.ndarray) -> dict[str, np.ndarray]:
    """A tree of scikit-learn as arrays over its nodes `[M]`; the children of a leaf are the leaf itself."""
    nodes = np.arange(tree.node_count)
    leaf = tree.children_left < 0
    depth = np.zeros(tree.node_count)
    for node in nodes[~leaf]:  # parents come before their children
        depth[[tree.children_left[node], tree.children_right[node]]] = depth[node] + 1
    return {'left': np.where(leaf, nodes, tree.children_left), 'right': np.where(leaf, nodes, tree.children_right),
            'feature': np.where(leaf, 0, columns[np.maximum(tree.feature, 0)]),
            'threshold': np.where(leaf, 0.0, tree.threshold),
            'depth': depth + _average_depth(tree.n_node_samples)}


def _depths(state: dict[str, Array], features: Array) -> Array:
    """The depth at which every tree sets every image apart, `[B, T]`."""
    left, right, feature, threshold, depth = (
        jnp.asarray(state[name]) for name in ('left', 'right', 'feature', 'threshold', 'depth'))
    trees = jnp.arange(left.shape[0])

    def descend(_: Array, node: Array) -> Array:
        value = jnp.take_along_axis(features, feature[trees, node], axis=1)
        return jnp.where(value <= threshold[trees, node], left[trees, node], right[trees, node])

    start = jnp.zeros((features.shape[0], left.shape[0]), jnp.int32)
    return depth[trees, jax.lax.fori_loop(0, jnp.asarray(state['longest_path']), descend, start)]


def _average_depth(counts: np.ndarray) -> np.ndarray:
    """c(n) of the paper's equation 1, with c(1) = 0 and c(2) = 1, as in scikit-learn."""
    n = np.maximum(np.asarray(counts, np.float64), 2)
    general = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return np.where(np.asarray(counts) <= 1, 0.0, np.where(np.asarray(counts) == 2, 1.0, general))


def _rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """The largest float32 not above each: `x <= t` is then decided as in float64, for every float32 x."""
    narrow = thresholds.astype(np.float32)
    return np.where(narrow > thresholds, np.nextafter(narrow, np.float32(-np.inf)), narrow)
