"""Classification metrics against scikit-learn, with ties, weights and missing classes."""
import numpy as np
import pytest
from sklearn import metrics as sk

from medrobust_jax.metrics import classification as ours


@pytest.fixture(params=[2, 3, 5], ids='{} classes'.format)
def sample(request):
    """Probabilities with many ties, labels, predictions and integer weights."""
    rng = np.random.default_rng(request.param)
    n, num_classes = 150, request.param
    labels = rng.permutation(np.arange(n) % num_classes)
    scores = rng.random((n, num_classes)) + 0.5 * np.eye(num_classes)[labels]
    probabilities = (scores / scores.sum(-1, keepdims=True)).round(1)
    if num_classes == 2:
        probabilities[:, 0] = 1 - probabilities[:, 1]
    return probabilities, labels, probabilities.argmax(-1), rng.integers(0, 4, n)


def one_vs_rest(score, probabilities, labels, weights=None):
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return np.mean([score(labels == c, probabilities[:, c], sample_weight=weights) for c in classes])


PREDICTIONS = [
    (ours.accuracy, sk.accuracy_score),
    (ours.balanced_accuracy, sk.balanced_accuracy_score),
    (ours.macro_f1, lambda y, p, **kw: sk.f1_score(y, p, average='macro', **kw)),
    (ours.quadratic_weighted_kappa, lambda y, p, **kw: sk.cohen_kappa_score(y, p, weights='quadratic', **kw)),
    (ours.mean_absolute_grade_error, sk.mean_absolute_error),
]
SCORES = [(ours.auroc, sk.roc_auc_score), (ours.average_precision, sk.average_precision_score)]


@pytest.mark.parametrize(('metric', 'reference'), PREDICTIONS, ids=lambda f: f.__name__)
def test_prediction_metrics_equal_sklearn(sample, metric, reference):
    _, labels, predictions, weights = sample
    assert metric(predictions, labels) == pytest.approx(reference(labels, predictions), rel=1e-12)
    expected = reference(labels, predictions, sample_weight=weights)
    assert metric(predictions, labels, weights) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(('metric', 'reference'), SCORES, ids=lambda f: f.__name__)
def test_score_metrics_equal_sklearn_with_ties(sample, metric, reference):
    probabilities, labels, _, weights = sample
    expected = one_vs_rest(reference, probabilities, labels)
    assert metric(probabilities, labels) == pytest.approx(expected, rel=1e-12)
    expected = one_vs_rest(reference, probabilities, labels, weights)
    assert metric(probabilities, labels, weights) == pytest.approx(expected, rel=1e-12)


def test_sensitivity_equals_the_roc_curve(sample):
    probabilities, labels, _, _ = sample

    def reference(positive, scores, sample_weight=None):
        false, true, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
        return true[false <= 0.2 + 1e-12].max()

    expected = one_vs_rest(reference, probabilities, labels)
    value = ours.sensitivity_at_specificity(probabilities, labels, specificity=0.8)
    assert value == pytest.approx(expected, rel=1e-12)


def test_sensitivity_allows_exactly_the_stated_false_alarms():
    scores = np.concatenate([np.arange(100), [94.5, 95.5]]) / 100
    labels = np.repeat([0, 1], [100, 2])
    # Above 95.5 lie 4 of 100 negatives and above 94.5 five: both specificities are at least 95 %.
    assert ours.sensitivity_at_specificity(scores, labels) == 1
    assert ours.sensitivity_at_specificity(scores, labels, specificity=0.96) == 0.5


def test_auroc_multiclass_equals_sklearn_ovr():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.permutation(np.arange(60) % 4), rng.dirichlet(np.ones(4), 60)
    expected = sk.roc_auc_score(labels, probabilities, multi_class='ovr')
    assert ours.auroc(probabilities, labels) == pytest.approx(expected, rel=1e-12)


def test_calibration_error_by_hand():
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.0, 1.0]]
    # Bins (.8, .9]: accuracy .5, confidence .9; (.5, .6]: 1, .6; (.9, 1]: 1, 1.
    expected = (2 * 0.4 + 0.4 + 0) / 4
    value = ours.expected_calibration_error(probabilities, [0, 1, 1, 1], num_bins=10)
    assert value == pytest.approx(expected)


def test_weights_compute_many_resamples_at_once(sample):
    probabilities, labels, predictions, _ = sample
    weights = np.random.default_rng(1).integers(0, 3, (4, len(labels)))
    for metric, _ in PREDICTIONS:
        together = metric(predictions, labels, weights)
        np.testing.assert_allclose(together, [metric(predictions, labels, w) for w in weights])
    for metric in (ours.auroc, ours.average_precision, ours.sensitivity_at_specificity,
                   ours.expected_calibration_error):
        together = metric(probabilities, labels, weights)
        np.testing.assert_allclose(together, [metric(probabilities, labels, w) for w in weights])


def test_one_column_is_class_one_of_two():
    scores, labels = np.array([0.1, 0.8, 0.4, 0.6]), np.array([0, 1, 1, 0])
    matrix = np.stack([1 - scores, scores], axis=1)
    of_scores, of_matrix = ours.score_metrics(scores, labels), ours.score_metrics(matrix, labels)
    assert of_scores == of_matrix == ours.score_metrics(scores[:, None], labels)
    assert of_scores['auroc'].value == 0.75


def test_constant_scores_are_worth_a_coin():
    labels = np.array([0, 1, 1, 0, 0])
    assert ours.auroc(np.full(5, 0.3), labels) == 0.5
    assert ours.average_precision(np.full(5, 0.3), labels) == pytest.approx(0.4)
    assert ours.sensitivity_at_specificity(np.full(5, 0.3), labels) == 0


def test_a_missing_class_narrows_the_mean_and_is_named():
    rng = np.random.default_rng(2)
    probabilities, labels = rng.dirichlet(np.ones(4), 40), np.arange(40) % 3
    estimates = ours.score_metrics(probabilities, labels)
    expected = np.mean([sk.roc_auc_score(labels == c, probabilities[:, c]) for c in range(3)])
    assert estimates['auroc'].value == pytest.approx(expected)
    assert 'without examples: 3' in estimates['auroc'].method
    assert 'without examples: 3' in estimates['balanced_accuracy'].method
    assert estimates['accuracy'].method == 'wilson'


def test_one_class_alone_leaves_scores_undefined_with_the_reason():
    estimates = ours.score_metrics(np.array([0.2, 0.7, 0.9]), np.ones(3, int), ordinal=True)
    for name in ('auroc', 'average_precision', 'sensitivity_at_95_specificity'):
        assert np.isnan(estimates[name].value), name
        assert estimates[name].method == 'undefined (labels hold one class only, 1)'
    assert estimates['accuracy'].value == pytest.approx(2 / 3)
    agreeing = ours.verdict_metrics(np.ones(3, int), np.ones(3, int), None, 2, ordinal=True)
    assert np.isnan(agreeing['quadratic_weighted_kappa'].value)
    assert 'one grade' in agreeing['quadratic_weighted_kappa'].method


def test_a_resample_without_a_class_is_undefined():
    labels, weights = np.array([0, 0, 1]), np.array([[1, 1, 0], [1, 1, 1]])
    for metric in (ours.auroc, ours.average_precision, ours.sensitivity_at_specificity):
        lost, kept = metric([0.1, 0.2, 0.3], labels, weights)
        assert np.isnan(lost), metric.__name__
        assert kept == 1
        assert np.isnan(metric([0.1, 0.2, 0.3], labels, np.array([0, 0, 1])))
    assert np.isnan(ours.balanced_accuracy([0, 0, 1], labels, weights)[0])


def test_grades_are_asked_for():
    predictions, labels = np.array([0, 1, 2, 4, 3]), np.array([0, 1, 2, 3, 4])
    nominal = ours.verdict_metrics(predictions, labels, None, 5)
    ordinal = ours.verdict_metrics(predictions, labels, None, 5, ordinal=True)
    assert set(ordinal) - set(nominal) == {'quadratic_weighted_kappa', 'mean_absolute_grade_error'}
    assert ordinal['mean_absolute_grade_error'].value == pytest.approx(0.4)
    assert ordinal['quadratic_weighted_kappa'].value == pytest.approx(0.9)


def test_patients_reach_every_interval(sample):
    probabilities, labels, _, _ = sample
    estimates = ours.score_metrics(probabilities, labels, np.arange(len(labels)) // 3)
    assert {e.method for e in estimates.values()} == {'bootstrap-patients'}
    assert all(e.low <= e.value <= e.high for e in estimates.values())
    assert all(e.n == len(labels) for e in estimates.values())


@pytest.mark.parametrize(('probabilities', 'labels', 'message'), [
    ([[0.5, 0.5], [np.nan, 1]], [0, 1], 'row 1'),
    ([[0.5, 0.5], [0.1, 0.9]], [0, 2], 'row 1 holds 2'),
    ([[0.5, 0.5], [0.1, 0.9]], [0, -1], 'row 1 holds -1'),
    ([[0.5, 0.5]], [0, 1], 'equal shapes'),
    ([[0.5, 0.5]], [0.0], 'integers'),
])
def test_refused(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        ours.score_metrics(np.array(probabilities), np.array(labels))
