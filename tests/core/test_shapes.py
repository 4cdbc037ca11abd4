"""Shape models against scikit-learn, samples, alignment."""
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from medrobust_jax.core import rng, shapes

GENERATOR = np.random.default_rng(0)


def some_shapes(count=40, points=7):
    base = GENERATOR.uniform(.2, .8, size=(points, 2))
    modes = GENERATOR.normal(size=(4, points, 2)) * np.array([.05, .03, .01, .001])[:, None, None]
    return base + np.einsum('nk,kpd->npd', GENERATOR.normal(size=(count, 4)), modes)


def test_modes_are_the_principal_components():
    points = some_shapes()
    model = shapes.fit_shapes(points, num_modes=3)
    expected = PCA(3).fit(points.reshape(40, -1))
    np.testing.assert_allclose(model.mean.ravel(), expected.mean_, atol=1e-6)
    np.testing.assert_allclose(model.variances, expected.explained_variance_, rtol=1e-4)
    cosines = np.abs((np.asarray(model.modes).reshape(3, -1) * expected.components_).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_samples_are_uniform_along_the_modes_and_nowhere_else():
    model = shapes.fit_shapes(some_shapes(), num_modes=2)
    keys = rng.example_keys(0, jnp.arange(2000))
    samples = np.asarray(shapes.sample_shapes(keys, model)) - np.asarray(model.mean)
    draws = np.einsum('bpd,kpd->bk', samples, model.modes) / np.sqrt(model.variances)
    assert np.abs(draws).max() <= 2 + 1e-4
    np.testing.assert_allclose(draws.std(0), 4 / np.sqrt(12), rtol=.05)
    rest = samples - np.einsum('bk,kpd->bpd', draws * np.sqrt(model.variances), model.modes)
    np.testing.assert_allclose(rest, 0, atol=1e-5)
    np.testing.assert_array_equal(shapes.sample_shapes(keys[5:6], model)[0],
                                  shapes.sample_shapes(keys[:9], model)[5])


def test_alignment_undoes_similarity():
    reference = some_shapes(1)[0]
    angle, scale = np.radians(GENERATOR.uniform(-180, 180, 5)), GENERATOR.uniform(.5, 2, 5)
    turns = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], -1).reshape(5, 2, 2)
    turned = scale[:, None, None] * (reference @ turns) + GENERATOR.normal(size=(5, 1, 2))
    np.testing.assert_allclose(shapes.align(turned, reference), np.stack([reference] * 5), atol=1e-12)
    np.testing.assert_allclose(shapes.align(turned), np.stack([turned[0]] * 5), atol=1e-9)
    mirrored = reference * [-1, 1]
    assert np.abs(shapes.align(mirrored[None], reference)[0] - reference).max() > .05


def test_refusals():
    points = some_shapes(4)
    with pytest.raises(ValueError, match=r'num_modes = 4 must lie in 1\.\.3 for 4 shapes of 7 points'):
        shapes.fit_shapes(points, num_modes=4)
    points[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match='must be finite points'):
        shapes.fit_shapes(points, num_modes=1)
