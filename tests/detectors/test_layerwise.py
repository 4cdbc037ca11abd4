"""Mahalanobis distances and local intrinsic dimensionality, layer by layer, and what combines layers."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression

from medrobust_jax.detectors.lid import lid, local_dimension
from medrobust_jax.detectors.mahalanobis import mahalanobis


def distances_by_hand(x, labels, query):
    means = np.stack([x[labels == c].mean(0) for c in range(3)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(x - means[labels])
    return -np.stack([covariance.mahalanobis(query - mean) for mean in means], axis=1).min(1)


@pytest.mark.parametrize('use', ['layers', 'features'])
def test_mahalanobis_is_scikit_learns(planted, key, use):
    with jax.enable_x64(True):
        (evidence, labels), (other, _) = planted(0, dtype=np.float64), planted(1, 50, dtype=np.float64)
        pairs = (zip(evidence['layers'], other['layers'], strict=True) if use == 'layers'
                 else [(evidence['features'], other['features'])])
        expected = []
        for x, query in pairs:
            trained = distances_by_hand(x, labels, x)
            expected.append((distances_by_hand(x, labels, query) - trained.mean()) / trained.std())
        detector = mahalanobis(use=use, shrinkage=0)
        scores = jax.jit(detector.score)(detector.fit(evidence, labels, key), other)
    np.testing.assert_allclose(scores, np.mean(expected, axis=0), rtol=1e-8, atol=1e-9)


def test_the_nudge_follows_each_layers_gradient(planted, linear_model, key):
    with jax.enable_x64(True):
        images = planted(0, dtype=np.float64)[0]['images']
        seen, labels = linear_model(images), planted(0)[1]
        detector = mahalanobis(nudge=.01, forward_evidence=linear_model, shrinkage=.1)
        state = detector.fit(seen, labels, key)
        plain = mahalanobis(shrinkage=.1)
        some = images[:6]

        def of_layer(x, layer):  # the plain detector with a combination that picks one layer as it is
            pick = {'center': np.zeros(2), 'scale': np.ones(2), 'weights': np.eye(2)[layer], 'bias': np.zeros(())}
            return plain.score({'layers': state['layers'], 'combination': pick}, linear_model(x))

        z = []
        for layer in range(2):
            gradient = jax.grad(lambda x, layer=layer: of_layer(x, layer).sum())(jnp.asarray(some))
            moved = np.clip(some + .01 * np.sign(gradient), 0, 1)
            assert (of_layer(moved, layer) > of_layer(some, layer)).all()
            combination = state['combination']
            z.append((of_layer(moved, layer) - combination['center'][layer]) / combination['scale'][layer])
        scores = jax.jit(detector.score)(state, {'images': some})
    np.testing.assert_allclose(scores, np.mean(z, axis=0), rtol=1e-9)


def test_without_a_nudge_the_model_is_not_asked(planted, key):
    def forward(images):
        raise AssertionError('asked')

    detector = mahalanobis(forward_evidence=forward)
    evidence, labels = planted(0)
    assert np.isfinite(detector.score(detector.fit(evidence, labels, key), evidence)).all()


@pytest.mark.parametrize(('options', 'message'), [
    ({'use': 'layer'}, "did you mean 'layers'"),
    ({'nudge': .01}, 'nudge = 0.01 moves images along a gradient: give forward_evidence'),
    ({'nudge': -1.}, 'nudge = -1.0 must be finite'),
    ({'inverse_regularization': 0}, 'inverse_regularization = 0 must be'),
])
def test_mahalanobis_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        mahalanobis(**options)


def test_mahalanobis_refuses_a_class_with_one_image(planted, key):
    evidence, labels = planted(0, 30)
    few = np.where(labels == 2, 0, labels)
    few[4] = 2
    with pytest.raises(ValueError, match=r'1 training images have class 2, at least 2 must: fit on more images$'):
        mahalanobis().fit(evidence, few, key)


def test_dimension_by_hand():
    reference = np.array([[1.], [2.], [4.], [9.]])
    expected = -3 / (np.log(1 / 4) + np.log(2 / 4) + np.log(4 / 4))
    estimate = local_dimension(jnp.zeros((1, 1)), reference, num_neighbors=3)
    np.testing.assert_allclose(estimate, [expected], rtol=1e-6)


@pytest.mark.parametrize('dimension', [1, 2, 5])
def test_dimension_of_a_ball_is_its_own(dimension):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4000, dimension))
    radii = rng.random((4000, 1)) ** (1 / dimension)
    ball = radii * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    embedded = (ball @ np.linalg.qr(rng.normal(size=(9, 9)))[0][:dimension]).astype(np.float32)
    estimate = local_dimension(jnp.zeros((1, 9)), embedded, num_neighbors=1000)
    # The estimate's deviation is dimension / sqrt(k).
    np.testing.assert_allclose(estimate, [dimension], rtol=.12)


def test_dimension_is_finite_where_distances_are_zero_or_equal():
    stored = np.zeros((6, 2), np.float32)
    stored[4:] = [[1, 0], [0, 1]]
    queries = jnp.asarray([[0., 0.], [3., 3.]])
    estimates = local_dimension(queries, stored, num_neighbors=5)
    # Four of six lie on the query itself; the fifth decides.
    np.testing.assert_allclose(estimates[0], 5 / (4 * np.log(1e6)), rtol=1e-5)
    ring = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    np.testing.assert_allclose(local_dimension(queries[:1], ring, num_neighbors=4), [1e6], rtol=1e-5)
    gradient = jax.grad(lambda q: local_dimension(q, stored, num_neighbors=5).sum())(queries)
    assert np.isfinite(gradient).all()


def test_lid_averages_standardized_layers(planted, key):
    with jax.enable_x64(True):
        evidence, other = planted(0, dtype=np.float64)[0], planted(1, 50, dtype=np.float64)[0]
        detector = lid(num_neighbors=5, batch_size=40)
        state = detector.fit(evidence, None, key)
        stored = [(evidence['layers'][1] == row).all(1).argmax() for row in state['reference'][1]]
        rest = np.setdiff1d(np.arange(240), stored)
        assert len(set(stored)) == 40
        z = []
        for x, query in zip(evidence['layers'], other['layers'], strict=True):
            both = np.concatenate([x[rest], query])
            distances = np.sort(np.linalg.norm(both[:, None] - x[stored], axis=-1))[:, :5]
            scores = 5 / np.log(distances / distances[:, 4:]).sum(1)
            z.append((scores[200:] - scores[:200].mean()) / scores[:200].std())
        got = jax.jit(detector.score)(state, other)
    np.testing.assert_allclose(got, np.mean(z, axis=0), rtol=1e-7)


@pytest.mark.parametrize(('options', 'message'), [
    ({'num_neighbors': 101}, 'num_neighbors = 101 must lie in 2..batch_size = 100'),
    ({'num_neighbors': 1}, 'num_neighbors = 1'),
    ({'inverse_regularization': -1}, 'inverse_regularization = -1'),
])
def test_lid_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        lid(**options)


def test_lid_needs_more_images_than_it_stores(planted, key):
    with pytest.raises(ValueError, match=r'layer 0: .*at least 102 rows'):
        lid().fit(planted(0, 100)[0], None, key)


@pytest.mark.parametrize('name', ['mahalanobis', 'lid'])
def test_the_learned_score_is_scikit_learns_logit(fitted, planted, name):
    detector, state, score = fitted(name)
    clean, attacked = planted(1, 90)[0], planted(2, 60, shift=1.)[0]
    learned = detector.fit_adversarial(state, clean, attacked)

    def layer_scores(evidence):  # standardized, one layer at a time
        pick = lambda weights: {**state['combination'], 'weights': np.float32(weights)}  # noqa: E731
        return np.stack([score({**state, 'combination': pick(w)}, evidence) for w in ([1, 0], [0, 1])], axis=1)

    model = LogisticRegression(class_weight='balanced', max_iter=1000, tol=1e-8)
    model.fit(np.concatenate([layer_scores(clean), layer_scores(attacked)]), np.repeat([1, 0], [90, 60]))
    some = planted(8, 40)[0]
    expected = model.decision_function(layer_scores(some))
    np.testing.assert_allclose(score(learned, some), expected, rtol=1e-3, atol=1e-3)
