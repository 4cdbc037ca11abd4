"""Gaussians and kernel densities against SciPy and scikit-learn, and where float32 could fail."""
import jax
import numpy as np
import pytest
from scipy import special, stats
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from medrobust_jax.detectors.gaussian import gaussian
from medrobust_jax.detectors.kernel_density import kernel_density
from medrobust_jax.detectors.scaling import scale_of


def standard(evidence, other):
    """Both features, standardized by the first's."""
    mean, std = evidence['features'].mean(0), evidence['features'].std(0)
    return (evidence['features'] - mean) / std, (other['features'] - mean) / std


def shrunk(z, rho):
    covariance = np.cov(z.T, bias=True)
    return covariance + rho * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


@pytest.mark.parametrize('combination', ['max', 'logsumexp', 'predicted'])
@pytest.mark.parametrize('grouping', ['predicted', 'labels'])
def test_a_gaussian_per_class_is_scipys(planted, key, grouping, combination):
    with jax.enable_x64(True):
        (evidence, labels), (other, _) = planted(0, dtype=np.float64), planted(1, 50, dtype=np.float64)
        evidence['logits'] = evidence['logits'][::-1]  # predictions disagree with labels
        z, query = standard(evidence, other)
        groups = labels if grouping == 'labels' else evidence['logits'].argmax(1)
        parts = [z[groups == c] for c in range(3)]
        densities = np.stack([stats.multivariate_normal(part.mean(0), shrunk(part, .1)).logpdf(query)
                              for part in parts], axis=1)
        shares = np.bincount(groups) / len(groups)
        expected = {'max': densities.max(1), 'logsumexp': special.logsumexp(densities + np.log(shares), axis=1),
                    'predicted': densities[np.arange(50), other['logits'].argmax(1)]}[combination]
        detector = gaussian(grouping=grouping, combination=combination, shrinkage=.1)
        scores = jax.jit(detector.score)(detector.fit(evidence, labels, key), other)
        assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-10)


def test_one_gaussian_on_principal_components_is_scipys(planted, key):
    with jax.enable_x64(True):
        evidence, other = planted(0, dtype=np.float64)[0], planted(1, 50, dtype=np.float64)[0]
        z, query = standard(evidence, other)
        pca = PCA(3).fit(z)
        reduced = pca.transform(z)
        expected = stats.multivariate_normal(reduced.mean(0), shrunk(reduced, .2)).logpdf(pca.transform(query))
        detector = gaussian(grouping='none', num_components=3, shrinkage=.2)
        scores = jax.jit(detector.score)(detector.fit(evidence, None, key), other)
    np.testing.assert_allclose(scores, expected, rtol=1e-10)


def test_tied_gaussians_are_scikit_learns_mixture(planted, key):
    with jax.enable_x64(True):
        (evidence, labels), (other, _) = planted(0, dtype=np.float64), planted(1, 50, dtype=np.float64)
        z, query = standard(evidence, other)
        means = np.stack([z[labels == c].mean(0) for c in range(3)])
        mixture = GaussianMixture(3, covariance_type='tied')
        mixture.weights_, mixture.means_ = np.bincount(labels) / len(labels), means
        mixture.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(np.cov((z - means[labels]).T, bias=True)))
        detector = gaussian(grouping='labels', combination='logsumexp', tied=True, shrinkage=0)
        scores = jax.jit(detector.score)(detector.fit(evidence, labels, key), other)
    np.testing.assert_allclose(scores, mixture.score_samples(query), rtol=1e-9)


def hard_features(rng, n):
    """Offsets of 1e3, units from 1e-4 to 1e4, near-copies, a dead unit and one constant at 7."""
    base = rng.normal(size=(n, 6))
    base[:, 5] = base[:, 4] + 1e-2 * base[:, 5]
    columns = base * np.logspace(-4, 4, 6) + 1e3 * np.logspace(-4, 4, 6)
    return np.concatenate([columns, np.zeros((n, 1)), np.full((n, 1), 7.)], axis=1)


def test_float32_scores_are_those_of_float64_on_degenerate_features(key):
    rng = np.random.default_rng(0)
    narrow = hard_features(rng, 400).astype(np.float32)
    queries = hard_features(rng, 50).astype(np.float32)
    queries[0, 6] = 1.  # activates what no training image did
    logits = np.zeros((400, 2), np.float32)
    detector = gaussian(grouping='none', shrinkage=1e-4)
    state = detector.fit({'features': narrow, 'logits': logits}, None, key)
    assert state['whitening'].dtype == np.float32
    scores = jax.jit(detector.score)(state, {'features': queries, 'logits': logits[:50]})
    wide = narrow.astype(np.float64)
    center, scale = scale_of(wide)
    z = (wide - center) / scale
    truth = stats.multivariate_normal(np.zeros(8), shrunk(z, 1e-4)).logpdf((queries - center) / scale)
    np.testing.assert_allclose(scores, truth, rtol=2e-3, atol=.05)
    assert scores[0] < scores[1:].min() - 100


def test_features_that_do_not_vary_get_the_others_scale():
    features = np.stack([np.arange(5.), 10 * np.arange(5.), np.zeros(5), 100 + 1e-5 * np.arange(5.)], axis=1)
    center, scale = scale_of(features)
    np.testing.assert_allclose(center, features.mean(0))
    np.testing.assert_allclose(scale, np.sqrt(2) * np.array([1, 10, 5.5, 5.5]))
    with pytest.raises(ValueError, match='none of the 4 features varies over 3'):
        scale_of(np.ones((3, 4)))


@pytest.mark.parametrize(('options', 'message'), [
    ({'shrinkage': 0}, 'covariance of class 0, 6 x 6 from 4 images, is singular: set shrinkage > 0'),
    ({'num_components': 12}, r'num_components = 12 must lie in 1..6 for 12 images of 6'),
    ({'grouping': 'labels'}, '0 training images have class 1, at least 2 must'),
])
def test_gaussians_that_cannot_be_fitted(planted, key, options, message):
    evidence, labels = planted(0, 12)
    evidence['logits'] = np.eye(3, dtype=np.float32)[labels]
    with pytest.raises(ValueError, match=message):
        gaussian(**options).fit(evidence, np.where(labels == 1, 2, labels), key)


def test_a_class_that_is_never_predicted_is_named(planted, key):
    evidence, labels = planted(0, 30)
    evidence['logits'] = np.tile(np.float32([1, 0, 2]), (30, 1))
    with pytest.raises(ValueError, match=r"0 training images are predicted as class 0.*set grouping='none'"):
        gaussian().fit(evidence, labels, key)


@pytest.mark.parametrize(('make', 'options', 'message'), [
    (gaussian, {'grouping': 'label'}, "did you mean 'labels'"),
    (gaussian, {'combination': 'sum'}, 'unknown combination'),
    (gaussian, {'shrinkage': -1}, 'shrinkage = -1 must be'),
    (kernel_density, {'bandwidth': 0}, 'bandwidth = 0 must be'),
    (kernel_density, {'bandwidth': 'scot'}, "did you mean 'scott'"),
])
def test_options_out_of_range_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize('bandwidth', ['scott', 'silverman', .7])
def test_the_density_of_the_predicted_class_is_scikit_learns(planted, key, bandwidth):
    with jax.enable_x64(True):
        (evidence, labels), (other, _) = planted(0, dtype=np.float64), planted(1, 50, dtype=np.float64)
        z, query = standard(evidence, other)
        expected = np.stack([KernelDensity(bandwidth=bandwidth).fit(z[labels == c]).score_samples(query)
                             for c in range(3)], axis=1)[np.arange(50), other['logits'].argmax(1)]
        detector = kernel_density(bandwidth=bandwidth, num_reference=None)
        scores = jax.jit(detector.score)(detector.fit(evidence, labels, key), other)
    np.testing.assert_allclose(scores, expected, rtol=1e-10)


def test_the_density_among_all_images_is_scikit_learns(planted, key):
    with jax.enable_x64(True):
        evidence, other = planted(0, dtype=np.float64)[0], planted(1, 50, dtype=np.float64)[0]
        expected = KernelDensity(bandwidth=1.5).fit(evidence['features']).score_samples(other['features'])
        detector = kernel_density(grouping='none', bandwidth=1.5, standardize=False, num_reference=None)
        scores = jax.jit(detector.score)(detector.fit(evidence, None, key), other)
    np.testing.assert_allclose(scores, expected, rtol=1e-10)


def test_at_most_so_many_images_of_every_class_are_stored(planted, key):
    evidence, labels = planted(0, 240)
    labels = np.where(np.arange(240) < 9, 0, 1 + labels % 2)  # nine of class 0
    state = kernel_density(num_reference=20).fit(evidence, labels, key)
    np.testing.assert_array_equal(np.bincount(state['classes']), [9, 20, 20])
    np.testing.assert_allclose(state['log_counts'], np.log([9, 20, 20]), rtol=1e-6)
    with pytest.raises(ValueError, match='num_reference = 0'):
        kernel_density(num_reference=0).fit(evidence, labels, key)
