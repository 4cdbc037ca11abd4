"""What holds for every detector: easy and impossible cases, independence of rows, gradients, refusals."""
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.detectors import registry
from medrobust_jax.detectors.registry import DETECTORS, DIFFERENTIABLE, NEEDS_LABELS, SUPERVISED, create_detector
from medrobust_jax.metrics.adversarial_detection import detection_metrics

FITTED = sorted(set(DETECTORS) - {'feature_squeezing'})


@pytest.mark.parametrize('name', FITTED)
def test_features_far_away_are_found_and_clean_ones_are_not(name, fitted, planted):
    _, state, score = fitted(name)
    clean, far, same = (score(state, planted(seed, 90, shift=shift)[0])
                        for seed, shift in ((1, 0.), (2, 40.), (3, 0.)))
    assert clean.shape == (90,)
    found = detection_metrics(clean, far)['auroc']
    # LID measures directions, not distance; far away all stored images lie in one direction.
    assert found.low > .9 if name == 'lid' else found.value == 1
    chance = detection_metrics(clean, same)['auroc']
    assert chance.low < .5 < chance.high
    assert chance.high - chance.low < .25


@pytest.mark.parametrize('name', sorted(DETECTORS))
def test_a_score_depends_on_its_own_row_alone(name, fitted, planted, linear_model):
    _, state, score = fitted(name)
    batch = linear_model(planted(1, 90)[0]['images'][:12])
    order = np.random.default_rng(0).permutation(12)
    together = np.asarray(score(state, batch))
    permuted = score(state, jax.tree.map(lambda leaf: leaf[order], batch))
    np.testing.assert_allclose(permuted, together[order], rtol=2e-5, atol=2e-5)
    poisoned = jax.tree.map(np.array, batch)
    for leaf in jax.tree.leaves(poisoned):
        leaf[0] = np.nan
    np.testing.assert_allclose(score(state, poisoned)[1:], together[1:], rtol=2e-5, atol=2e-5)
    first = jax.tree.map(lambda leaf: np.repeat(leaf[4:5], 12, axis=0), batch)
    np.testing.assert_allclose(score(state, first), np.repeat(together[4], 12), rtol=2e-5, atol=2e-5)
    assert together.std() > 1e-3


@pytest.mark.parametrize('name', sorted(DETECTORS))
def test_fitting_is_deterministic_and_the_state_is_plain_arrays(name, fitted, build, planted, key):
    detector, state, _ = fitted(name)
    again = build(name).fit(*planted(0), key)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(old, new)
        assert isinstance(new, np.ndarray)
        assert new.dtype in (np.float32, np.int32)
    assert detector.name == name
    assert detector.differentiable == (name in DIFFERENTIABLE)
    assert (detector.fit_adversarial is not None) == (name in SUPERVISED)


@pytest.mark.parametrize('name', sorted(set(DETECTORS) - NEEDS_LABELS))
def test_without_labels_the_unsupervised_are_fitted_all_the_same(name, fitted, build, planted, key):
    _, state, _ = fitted(name)
    unlabeled = build(name).fit(planted(0)[0], None, key)
    assert jax.tree.structure(state) == jax.tree.structure(unlabeled)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state, unlabeled)))


@pytest.mark.parametrize('name', sorted(NEEDS_LABELS))
def test_without_labels_the_others_are_refused(name, build, planted, key):
    with pytest.raises(ValueError, match='labels is None'):
        build(name).fit(planted(0)[0], None, key)


@pytest.mark.parametrize('name', sorted(DIFFERENTIABLE - {'feature_squeezing'}))
def test_gradients_are_those_of_small_differences(name, build, planted, key):
    with jax.enable_x64(True):
        detector = build(name)
        state = detector.fit(*planted(0, dtype=np.float64), key)
        some = jax.tree.map(lambda leaf: leaf[:8], planted(1, 90, dtype=np.float64)[0])
        read = {'features': some['features'], 'layers': some['layers']}
        rng = np.random.default_rng(1)
        along = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), read)

        @jax.jit
        def both(read):
            score = lambda step: detector.score(  # noqa: E731
                state, {**some, **jax.tree.map(lambda leaf, to: leaf + step * to, read, along)})
            _, pullback = jax.vjp(lambda read: detector.score(state, {**some, **read}), read)
            by_row = [pullback(one)[0] for one in jnp.eye(8)]
            slopes = [sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), g, along))) for g in by_row]
            return jnp.stack(slopes), (score(1e-6) - score(-1e-6)) / 2e-6

        slopes, differences = both(read)
        np.testing.assert_allclose(slopes, differences, rtol=1e-5, atol=1e-8)
        assert np.abs(slopes).min() > 1e-6


@pytest.mark.parametrize('name', sorted(DETECTORS))
def test_gradients_to_images_are_finite_also_at_and_far_from_training_images(name, build, planted, linear_model,
                                                                           key):
    detector, (evidence, labels) = build(name), planted(0)
    images = evidence['images']
    state = detector.fit(linear_model(images), labels, key)
    gradient = jax.jit(jax.grad(lambda x: detector.score(state, linear_model(x)).sum()))(
        np.concatenate([images[:5], np.zeros((1, 8, 8, 1)), 1e4 * np.ones((1, 8, 8, 1))]).astype(np.float32))
    assert np.isfinite(gradient).all()
    assert np.any(gradient[:5] != 0) == (name in DIFFERENTIABLE)


@pytest.mark.parametrize('name', FITTED)
def test_rows_that_are_not_finite_are_named(name, build, planted, key):
    evidence, labels = planted(0)
    evidence['features'][17, 2] = np.nan
    evidence['layers'][1][17, 2] = np.nan
    with pytest.raises(ValueError, match='row 17 holds NaN or inf'):
        build(name).fit(evidence, labels, key)


@pytest.mark.parametrize('name', sorted(DETECTORS))
def test_what_is_missing_from_the_evidence_is_named(name, fitted):
    detector, state, _ = fitted(name)
    with pytest.raises(ValueError, match=r"reads '\w+', and the evidence holds"):
        detector.score(state, {})


@pytest.mark.parametrize('name', FITTED)
def test_another_models_features_are_refused_at_trace_time(name, fitted, planted):
    detector, state, _ = fitted(name)
    evidence, _ = planted(1, 90)
    narrow = evidence['features'][:, :3]
    with pytest.raises(ValueError, match='belongs to another model'):
        jax.eval_shape(detector.score, state, {**evidence, 'features': narrow, 'layers': (narrow, narrow)})


@pytest.mark.parametrize('name', sorted(SUPERVISED))
def test_another_number_of_layers_is_refused(name, fitted, planted):
    detector, state, _ = fitted(name)
    evidence, _ = planted(1, 90)
    with pytest.raises(ValueError, match='fitted on 2 layers, and scores 1'):
        detector.score(state, {**evidence, 'layers': evidence['layers'][:1]})


@pytest.mark.parametrize('name', sorted(SUPERVISED))
def test_learning_from_attacked_images_weighs_the_layers_that_tell(name, fitted, planted):
    detector, state, score = fitted(name)

    def attacked(seed):  # the second layer is spread evenly in all directions, the first is as on clean images
        evidence, _ = planted(seed, 90)
        noise = 8 * np.random.default_rng(seed).normal(size=evidence['layers'][1].shape)
        return {**evidence, 'layers': (evidence['layers'][0], noise.astype(np.float32))}

    learned = detector.fit_adversarial(state, planted(1, 90)[0], attacked(5))
    weights = learned['combination']['weights']
    assert weights[1] > 2 * abs(weights[0])
    assert not np.array_equal(weights, state['combination']['weights'])
    assert detection_metrics(score(learned, planted(7, 90)[0]), score(learned, attacked(6)))['auroc'].low > .9


def test_names_and_options_are_suggested(linear_model):
    with pytest.raises(ValueError, match="unknown detector 'gausian'; did you mean 'gaussian'"):
        create_detector('gausian')
    with pytest.raises(ValueError, match="option of detector 'gaussian' 'shrinkige'; did you mean 'shrinkage'"):
        create_detector('gaussian', shrinkige=.1)
    with pytest.raises(ValueError, match='give forward_evidence'):
        create_detector('feature_squeezing')
    with pytest.raises(ValueError, match="unknown option of detector 'feature_squeezing' 'forward'"):
        create_detector('feature_squeezing', forward=linear_model)


def test_the_registry_knows_who_runs_the_model():
    takes = {name for name, make in DETECTORS.items()
             if {'forward', 'forward_evidence'} & set(inspect.signature(make).parameters)}
    assert takes == registry.RUNS_MODEL
