"""What a task calls right, and the wiring of losses and metrics."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sklearn_metrics

from medrobust_jax.tasks.classification import classification
from medrobust_jax.tasks.ordinal import grade_probabilities, ordinal

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize('num_classes', [2, 3, 9])
def test_criterion_is_argmax(num_classes):
    task = classification(num_classes)
    logits = GENERATOR.normal(size=(200, num_classes)).astype(np.float32)
    labels = GENERATOR.integers(0, num_classes, 200)
    right = task.acceptable(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_array_equal(right, logits.argmax(1) == labels)
    np.testing.assert_array_equal(task.predict(jnp.asarray(logits)), logits.argmax(1))
    assert task.num_outputs == num_classes
    probabilities = special.softmax(logits.astype(np.float64), axis=1)
    expected = sklearn_metrics.log_loss(labels, probabilities, labels=range(num_classes))
    np.testing.assert_allclose(task.loss(jnp.asarray(logits), jnp.asarray(labels)).mean(), expected, rtol=1e-5)
    np.testing.assert_allclose(task.divergence(jnp.asarray(logits), jnp.asarray(logits)), 0, atol=1e-6)


@pytest.mark.parametrize('tolerance', [0, 1, 2])
def test_grades_off_by_the_tolerance_are_acceptable(tolerance):
    task = ordinal(5, tolerance=tolerance)
    true, predicted = np.meshgrid(np.arange(5), np.arange(5))
    logits = jnp.where(jnp.arange(4) < predicted.reshape(-1, 1), 3., -2.)
    np.testing.assert_array_equal(task.predict(logits), predicted.ravel())
    np.testing.assert_array_equal(task.acceptable(logits, jnp.asarray(true.ravel())),
                                  abs(true - predicted).ravel() <= tolerance)
    assert task.num_outputs == 4


def test_nan_is_never_acceptable():
    assert not ordinal(3).acceptable(jnp.array([[jnp.nan, -1.]]), jnp.array([0]))[0]
    assert not classification(2).acceptable(jnp.array([[1., jnp.nan]]), jnp.array([0]))[0]


def test_grade_probabilities_are_a_distribution():
    logits = GENERATOR.normal(scale=4, size=(100, 4))
    p = grade_probabilities(logits)
    assert p.shape == (100, 5)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    assert (p >= 0).all()
    falling = -np.sort(-logits, axis=1)  # consistent answers: P[y > k] is what the logits say
    above = 1 - grade_probabilities(falling).cumsum(1)[:, :-1]
    np.testing.assert_allclose(above, special.expit(falling), atol=1e-12)


def test_classification_metrics_are_scikit_learns():
    task = classification(3)
    logits = GENERATOR.normal(size=(90, 3)).astype(np.float32)
    labels = GENERATOR.integers(0, 3, 90)
    got = task.metrics(jnp.asarray(logits), jnp.asarray(labels), None)
    p = special.softmax(logits.astype(np.float64), axis=1)
    truth = {'accuracy': sklearn_metrics.accuracy_score(labels, p.argmax(1)),
             'balanced_accuracy': sklearn_metrics.balanced_accuracy_score(labels, p.argmax(1)),
             'macro_f1': sklearn_metrics.f1_score(labels, p.argmax(1), average='macro'),
             'auroc': sklearn_metrics.roc_auc_score(labels, p, multi_class='ovr')}
    for name, value in truth.items():
        assert got[name].value == pytest.approx(value, abs=1e-6), name
        assert got[name].low <= value <= got[name].high
    verdicts = task.verdict_metrics(logits.argmax(1), labels, None)
    assert verdicts['macro_f1'].value == got['macro_f1'].value
    assert 'auroc' not in verdicts


def test_ordinal_metrics_judge_the_grade_that_is_acted_on():
    task = ordinal(4)
    # Inconsistent answers: two questions say yes, yet the most probable grade is another.
    logits = np.concatenate([GENERATOR.normal(size=(60, 3)), np.tile([.1, -3, .1], (30, 1))]).astype(np.float32)
    grades = GENERATOR.integers(0, 4, 90)
    predicted = (logits > 0).sum(1)
    assert (grade_probabilities(logits).argmax(1) != predicted).any()
    got = task.metrics(jnp.asarray(logits), jnp.asarray(grades), None)
    kappa = sklearn_metrics.cohen_kappa_score(grades, predicted, weights='quadratic')
    assert got['quadratic_weighted_kappa'].value == pytest.approx(kappa, abs=1e-9)
    assert got['mean_absolute_grade_error'].value == pytest.approx(abs(grades - predicted).mean())
    assert got['accuracy'].value == pytest.approx((grades == predicted).mean())
    assert task.verdict_metrics(predicted, grades, None)['quadratic_weighted_kappa'].value == pytest.approx(kappa)


@pytest.mark.parametrize('task', [classification(3), ordinal(3)], ids=lambda task: task.name)
def test_bad_targets_name_the_row(task):
    task.check_targets(np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=r'row 2 holds 3, outside 0\.\.2'):
        task.check_targets(np.array([0, 1, 3]))
    with pytest.raises(TypeError, match='not an integer'):
        task.check_targets(np.array([0., 1]))
    labels = jnp.array([1])
    assert task.targets({'label': labels, 'image': None}) is labels
    assert task.target_names == ('label',)


def test_options_out_of_range():
    for make in (lambda: classification(1), lambda: classification(3, label_smoothing=1.0), lambda: ordinal(1),
                 lambda: ordinal(3, tolerance=2), lambda: ordinal(3, tolerance=-1)):
        with pytest.raises(ValueError, match='needs num_'):
            make()


def test_label_smoothing_reaches_the_loss():
    logits, labels = jnp.array([[4., 0]]), jnp.array([0])
    plain, smooth = (classification(2, label_smoothing=a).loss(logits, labels)[0] for a in (0.0, .5))
    np.testing.assert_allclose(smooth, .75 * plain + .25 * jax.nn.softplus(4.), rtol=1e-6)
