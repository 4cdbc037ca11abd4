"""Neighbors, forest and one-class SVM against scikit-learn."""
import jax
import numpy as np
import pytest
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM

from medrobust_jax.detectors.distances import nearest_distances
from medrobust_jax.detectors.grouping import seed_of
from medrobust_jax.detectors.isolation_forest import isolation_forest
from medrobust_jax.detectors.nearest_neighbors import nearest_neighbors
from medrobust_jax.detectors.one_class_svm import one_class_svm


@pytest.mark.parametrize(('statistic', 'normalize'), [('mean', False), ('kth', False), ('kth', True)])
def test_neighbors_are_scikit_learns(planted, key, statistic, normalize):
    with jax.enable_x64(True):
        evidence, other = planted(0, dtype=np.float64)[0], planted(1, 50, dtype=np.float64)[0]
        z, query = evidence['features'], other['features']
        if normalize:
            z, query = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, query))
        else:
            z, query = (z - z.mean(0)) / z.std(0), (query - z.mean(0)) / z.std(0)
        distances, _ = NearestNeighbors(n_neighbors=7).fit(z).kneighbors(query)
        detector = nearest_neighbors(num_neighbors=7, statistic=statistic, normalize=normalize, num_reference=None)
        scores = jax.jit(detector.score)(detector.fit(evidence, None, key), other)
    expected = distances.mean(1) if statistic == 'mean' else distances[:, -1]
    np.testing.assert_allclose(scores, -expected, rtol=1e-9)


def test_float32_distances_carry_no_rounding_of_large_norms():
    rng = np.random.default_rng(0)
    reference = (1e3 + np.arange(40)[:, None] + .1 * rng.normal(size=(40, 5))).astype(np.float32)
    query = reference[:8] + rng.normal(size=(8, 5)).astype(np.float32) * 1e-2
    query[0] = reference[0]
    got = jax.jit(lambda q: nearest_distances(q, reference, num_neighbors=3))(query)
    wide = np.linalg.norm(query[:, None].astype(np.float64) - reference, axis=-1)
    np.testing.assert_allclose(got, np.sort(wide, axis=1)[:, :3], rtol=1e-5)
    assert got[0, 0] == 0
    gradient = jax.grad(lambda q: nearest_distances(q, reference, num_neighbors=1).sum())(query)
    assert not gradient[0].any()  # at the stored point itself; elsewhere of length 1
    np.testing.assert_allclose(np.linalg.norm(gradient[1:], axis=1), 1, rtol=1e-5)


def test_more_neighbors_than_stored_images_are_refused(planted, key):
    evidence, _ = planted(0, 30)
    with pytest.raises(ValueError, match='num_neighbors = 31 is more than the 30 stored'):
        nearest_neighbors(num_neighbors=31).fit(evidence, None, key)
    with pytest.raises(ValueError, match='num_neighbors = 8 is more than the 7 stored'):
        nearest_neighbors(num_neighbors=8, num_reference=7).fit(evidence, None, key)
    with pytest.raises(ValueError, match='num_neighbors = 0'):
        nearest_neighbors(num_neighbors=0)


@pytest.mark.parametrize('num_samples', [32, 256])
def test_forest_scores_are_scikit_learns_in_float32(planted, key, num_samples):
    evidence, other = planted(0, 200)[0], planted(1, 300)[0]
    evidence['features'][:, 3] = np.round(evidence['features'][:, 3])  # ties
    evidence['features'][:60] = evidence['features'][0]  # leaves with many images
    features = evidence['features'].astype(np.float64)
    forest = IsolationForest(n_estimators=50, max_samples=min(num_samples, 200), random_state=seed_of(key))
    detector = isolation_forest(num_trees=50, num_samples=num_samples)
    state = detector.fit(evidence, None, key)
    queries = np.concatenate([other['features'], evidence['features']])
    scores = jax.jit(detector.score)(state, {'features': queries})
    np.testing.assert_allclose(scores, forest.fit(features).score_samples(queries.astype(np.float64)), rtol=2e-6)
    splits = [tree.tree_.feature[tree.tree_.feature >= 0] for tree in forest.estimators_]
    np.testing.assert_array_equal(state['splits_per_feature'], np.bincount(np.concatenate(splits), minlength=6))


def test_thresholds_decide_as_in_float64():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 2)).astype(np.float32)
    detector = isolation_forest(num_trees=20)
    state = detector.fit({'features': features}, None, jax.random.key(1))
    forest = IsolationForest(n_estimators=20, max_samples=60, random_state=seed_of(jax.random.key(1)))
    wide = np.concatenate([tree.tree_.threshold[tree.tree_.children_left > 0]
                           for tree in forest.fit(features.astype(np.float64)).estimators_])
    # Queries on and next to every threshold, the hardest there are.
    near = wide.astype(np.float32)
    queries = np.concatenate([near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))])
    queries = np.stack([queries, queries], axis=1)
    scores = jax.jit(detector.score)(state, {'features': queries})
    np.testing.assert_allclose(scores, forest.score_samples(queries.astype(np.float64)), rtol=2e-6)


@pytest.mark.parametrize('gamma', [None, .3])
def test_one_class_svm_is_scikit_learns(planted, key, gamma):
    with jax.enable_x64(True):
        evidence, other = planted(0, dtype=np.float64)[0], planted(1, 50, dtype=np.float64)[0]
        z, query = evidence['features'], other['features']
        z, query = (z - z.mean(0)) / z.std(0), (query - z.mean(0)) / z.std(0)
        expected = OneClassSVM(nu=.2, gamma=gamma or 'scale').fit(z).decision_function(query)
        detector = one_class_svm(nu=.2, gamma=gamma)
        scores = jax.jit(detector.score)(detector.fit(evidence, None, key), other)
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(('make', 'options', 'message'), [
    (one_class_svm, {'nu': 0}, r'nu = 0 must lie in \(0, 1\]'),
    (one_class_svm, {'gamma': -1.}, 'gamma = -1.0 must be'),
    (isolation_forest, {'num_trees': 0}, 'num_trees = 0'),
    (nearest_neighbors, {'statistic': 'median'}, 'unknown statistic'),
])
def test_options_out_of_range_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
