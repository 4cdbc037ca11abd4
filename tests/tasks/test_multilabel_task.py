"""The multi-label task: its criterion, its decisions, and what it refuses."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.losses.multilabel import multilabel_margin
from medrobust_jax.tasks.multilabel import multilabel

GENERATOR = np.random.default_rng(0)
LOGITS = jnp.asarray(GENERATOR.normal(size=(60, 6)), jnp.float32)
FINDINGS = jnp.asarray(GENERATOR.integers(0, 2, (60, 6)), jnp.int32)
WRONG = ((np.asarray(LOGITS) > 0) != np.asarray(FINDINGS)).sum(1)


@pytest.mark.parametrize('tolerance', [0, 2])
def test_criterion_counts_wrong_findings(tolerance):
    task = multilabel(6, tolerance=tolerance)
    right = jax.jit(task.acceptable)(LOGITS, FINDINGS)
    np.testing.assert_array_equal(right, tolerance >= WRONG)
    np.testing.assert_array_equal(right, multilabel_margin(LOGITS, FINDINGS, tolerance=tolerance) <= 0)
    np.testing.assert_array_equal(task.quality(LOGITS, FINDINGS), -WRONG)
    assert task.num_outputs == 6
    assert task.target_names == ('findings',)
    assert task.targets({'findings': FINDINGS}) is FINDINGS


def test_threshold_comes_from_a_models_own_quality():
    task = multilabel(6)
    threshold = task.threshold_of(np.asarray(task.quality(LOGITS, FINDINGS)))
    assert threshold == pytest.approx((-WRONG.mean(),))
    calibrated = multilabel(6, threshold=threshold)
    np.testing.assert_array_equal(calibrated.acceptable(LOGITS, FINDINGS), WRONG.mean() >= WRONG)


def test_nan_and_infinite_outputs_are_never_acceptable():
    task = multilabel(2, tolerance=1)
    for bad in (jnp.nan, jnp.inf):
        assert not task.acceptable(jnp.array([[bad, -1.]]), jnp.array([[1, 0]]))[0]
    assert task.acceptable(jnp.array([[3., -1.]]), jnp.array([[1, 0]]))[0]


def test_loss_and_criterion_agree_about_better_and_worse():
    task = multilabel(6)
    toward = jnp.where(FINDINGS > 0, 1., -1.)
    assert (task.loss(LOGITS + toward, FINDINGS) < task.loss(LOGITS, FINDINGS)).all()
    assert (task.quality(LOGITS + toward, FINDINGS) >= task.quality(LOGITS, FINDINGS)).all()
    np.testing.assert_allclose(task.divergence(LOGITS, LOGITS), 0, atol=1e-6)


def test_metrics_of_outputs_and_of_decisions():
    task = multilabel(6, label_names=tuple('abcdef'))
    decided = task.predict(LOGITS)
    assert decided.dtype == jnp.uint8
    scores = task.metrics(np.asarray(LOGITS), np.asarray(FINDINGS), None)
    verdicts = task.verdict_metrics(np.asarray(decided), np.asarray(FINDINGS), None)
    assert scores['exact_match'].value == verdicts['exact_match'].value == (WRONG == 0).mean()
    assert 'auroc/c' in scores
    assert not any(name.startswith('auroc') for name in verdicts)


def test_refusals_name_the_row():
    task = multilabel(2)
    task.check_targets(np.array([[0, 1]]))
    with pytest.raises(ValueError, match='row 1 holds'):
        task.check_targets(np.array([[0, 1], [1, -1]]))
    with pytest.raises(ValueError, match=r'shape \(2,\) are not \[batch, 2\]'):
        task.check_targets(np.array([0, 1]))
    for options in ({'tolerance': 2}, {'tolerance': -1}, {'threshold': (.5,)}):
        with pytest.raises(ValueError, match='needs num_labels'):
            multilabel(2, **options)
    with pytest.raises(ValueError, match='one threshold'):
        multilabel(2, threshold=(-1, -1))
    with pytest.raises(ValueError, match='1 names for num_labels = 2'):
        multilabel(2, label_names=('a',))
