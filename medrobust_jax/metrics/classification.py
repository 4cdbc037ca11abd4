"""Quality of a classifier on gathered predictions, in NumPy.

Contents: prediction-based `accuracy`, `balanced_accuracy`, `macro_f1`, `quadratic_weighted_kappa`,
`mean_absolute_grade_error`; score-based `auroc`, `average_precision`,
`sensitivity_at_specificity`, `expected_calibration_error`; and, with intervals, `verdict_metrics`
(predictions alone) and `score_metrics` (probabilities).

Every function takes `weights [..., N]`, how often each example counts, and returns `[...]`: a
bootstrap's resamples are computed at once. Where the data do not define a number it is NaN, never
an exception: an evaluation does not stop because a class is missing.

Example:

    probabilities = np.asarray(jax.nn.softmax(logits))
    estimates = score_metrics(probabilities, labels, groups=patient_ids)
    print(estimates['auroc'].value, estimates['auroc'].low)
    under_attack = verdict_metrics(predictions, labels, patient_ids, num_classes=4)
"""
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.metrics.intervals import Estimate, bootstrap, proportion

Weights = np.ndarray | None


def accuracy(predictions: ArrayLike, labels: ArrayLike, weights: Weights = None) -> Any:
    """The share of examples whose predicted class is right.

    Args:
      predictions: [N] int, the predicted classes.
      labels: [N] int, the true classes.
      weights: [..., N] >= 0, or None for all 1.

    Returns:
      [...] in [0, 1].
    """
    right = np.asarray(predictions) == np.asarray(labels)
    w = _weights_of(weights, right.size)
    return w @ right.astype(float) / w.sum(-1)


def balanced_accuracy(predictions: ArrayLike, labels: ArrayLike, weights: Weights = None) -> Any:
    """The mean over classes of the share of each class that is predicted right.

    The classes are those in `labels`; a class that no example has is left out, as in scikit-learn.
    A resample that loses a class is undefined.

    Args:
      predictions: [N] int.
      labels: [N] int.
      weights: [..., N] >= 0, or None for all 1.

    Returns:
      [...] in [0, 1].
    """
    counts = _confusion(predictions, labels, weights)
    present = np.unique(np.asarray(labels))
    hits = np.diagonal(counts, axis1=-2, axis2=-1)[..., present]
    return _divide(hits, counts.sum(-1)[..., present]).mean(-1)


def macro_f1(predictions: ArrayLike, labels: ArrayLike, weights: Weights = None) -> Any:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    A class that is neither a label nor a prediction is left out, as in scikit-learn.

    Args:
      predictions: [N] int.
      labels: [N] int.
      weights: [..., N] >= 0, or None for all 1.

    Returns:
      [...] in [0, 1].
    """
    counts = _confusion(predictions, labels, weights)
    occurrences = counts.sum(-1) + counts.sum(-2)
    used = occurrences > 0
    f1 = np.where(used, _divide(2 * np.diagonal(counts, axis1=-2, axis2=-1), occurrences), 0)
    return f1.sum(-1) / used.sum(-1)


def quadratic_weighted_kappa(predictions: ArrayLike, labels: ArrayLike,
                             weights: Weights = None) -> Any:
    """Agreement of grades beyond chance, with errors weighted by their squared distance.

        1 - sum_ij (i - j)^2 observed_ij / sum_ij (i - j)^2 expected_ij

    where `expected` is the product of the two marginals.

    Args:
      predictions: [N] int, predicted grades.
      labels: [N] int, true grades.
      weights: [..., N] >= 0, or None for all 1.

    Returns:
      [...] in [-1, 1]; NaN where labels and predictions are all one and the same grade.

    References: Cohen, Psychological Bulletin 1968.
    """
    counts = _confusion(predictions, labels, weights)
    grades = np.arange(counts.shape[-1])
    cost = (grades[:, None] - grades[None, :]) ** 2
    expected = counts.sum(-1)[..., :, None] * counts.sum(-2)[..., None, :]
    chance = _divide((cost * expected).sum((-2, -1)), counts.sum((-2, -1)))
    return 1 - _divide((cost * counts).sum((-2, -1)), chance)


def mean_absolute_grade_error(predictions: ArrayLike, labels: ArrayLike,
                              weights: Weights = None) -> Any:
    """How many grades a prediction is off, on average.

    Args:
      predictions: [N] int, predicted grades.
      labels: [N] int, true grades.
      weights: [..., N] >= 0, or None for all 1.

    Returns:
      [...] >= 0, in grades.
    """
    error = np.abs(np.asarray(predictions, float) - np.asarray(labels, float))
    w = _weights_of(weights, error.size)
    return w @ error / w.sum(-1)


def auroc(probabilities: ArrayLike, labels: ArrayLike, weights: Weights = None) -> Any:
    """The area under the ROC curve; with more than two classes the mean of one against the rest.

    P[score of a positive > score of a negative] + P[equal] / 2. Classes absent from `labels` are
    left out of the mean; with one class alone, and on a resample that loses a class, it is NaN.

    Args:
      probabilities: [N, C], or [N] or [N, 1] scores of class 1 of two.
      labels: [N] int in [0, C).
      weights: [..., N] >= 0, or None for all 1.

    Returns:
      [...] in [0, 1], or NaN.
    """
    return _one_vs_rest(_binary_auroc, probabilities, labels, weights)


def average_precision(probabilities: ArrayLike, labels: ArrayLike, weights: Weights = None) -> Any:
    """The area under the precision-recall curve as a sum of steps; macro as in `auroc`.

        sum_n (recall_n - recall_{n-1}) precision_n     over the distinct scores, falling

    Args:
      probabilities: [N, C], or [N] or [N, 1] scores of class 1 of two.
      labels: [N] int in [0, C).
      weights: [..., N] >= 0, or None for all 1.

    Returns:
      [...] in [0, 1], or NaN.
    """
    return _one_vs_rest(_binary_average_precision, probabilities, labels, weights)


def sensitivity_at_specificity(probabilities: ArrayLike, labels: ArrayLike,
                               weights: Weights = None, *, specificity: float = 0.95) -> Any:
    """The largest sensitivity of any threshold whose specificity is at least the one asked for.

    The threshold is chosen on the very examples it is scored on, so the number is optimistic; it
    compares models, it does not promise an operating point. Macro as in `auroc`.

    Args:
      probabilities: [N, C], or [N] or [N, 1] scores of class 1 of two.
      labels: [N] int in [0, C).
      weights: [..., N] >= 0, or None for all 1.
      specificity: in [0, 1].

    Returns:
      [...] in [0, 1], or NaN.
    """
    statistic = partial(_binary_sensitivity, specificity=specificity)
    return _one_vs_rest(statistic, probabilities, labels, weights)


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike,
                               weights: Weights = None, *, num_bins: int = 15) -> Any:
    """How far confidence is from accuracy, averaged over bins of equal width of confidence.

        sum_b (n_b / n) |accuracy_b - mean confidence_b|

    Its bootstrap is biased upwards, since noise in a bin adds to the error.

    Args:
      probabilities: [N, C], or [N] or [N, 1] probabilities of class 1 of two.
      labels: [N] int in [0, C).
      weights: [..., N] >= 0, or None for all 1.
      num_bins: bins over (0, 1].

    Returns:
      [...] in [0, 1].

    References: Guo et al., ICML 2017, eq. 3.
    """
    p = _as_matrix(probabilities)
    confidence = p.max(-1)
    gap = (p.argmax(-1) == np.asarray(labels)).astype(float) - confidence
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    w = _weights_of(weights, len(gap))
    return np.abs(_sums(w * gap, bins, num_bins)).sum(-1) / w.sum(-1)


_PREDICTION_METRICS = {'balanced_accuracy': balanced_accuracy, 'macro_f1': macro_f1}
_GRADE_METRICS = {'quadratic_weighted_kappa': quadratic_weighted_kappa,
                  'mean_absolute_grade_error': mean_absolute_grade_error}
_SCORE_METRICS = {'auroc': auroc, 'average_precision': average_precision,
                  'sensitivity_at_95_specificity': sensitivity_at_specificity,
                  'expected_calibration_error': expected_calibration_error}


def verdict_metrics(predictions: ArrayLike, labels: ArrayLike, groups: ArrayLike | None,
                    num_classes: int, *, ordinal: bool = False) -> dict[str, Estimate]:
    """All that predictions alone tell, with 95 % intervals.

    Args:
      predictions: [N] int in [0, num_classes).
      labels: [N] int in [0, num_classes).
      groups: [N] patient ids, resampled as wholes, or None.
      num_classes: 2 or more.
      ordinal: whether classes are grades; adds quadratic-weighted kappa and mean absolute grade
        error, which mean nothing for unordered classes.

    Returns:
      Name to estimate: accuracy (Wilson, or patients resampled), balanced_accuracy, macro_f1. A
      number left undefined is NaN and its `method` says why; a class without examples is named
      in `method` where it narrows a mean over classes.

    Raises:
      ValueError: no examples, shapes differ, or a class outside [0, num_classes).
    """
    y_hat = _checked_classes(predictions, num_classes, 'predictions')
    y = _checked_classes(labels, num_classes, 'labels')
    if y.shape != y_hat.shape:
        raise ValueError(f'predictions {y_hat.shape} and labels {y.shape} must have equal shapes')
    metrics = _PREDICTION_METRICS | (_GRADE_METRICS if ordinal else {})
    result = {'accuracy': proportion(y_hat == y, groups)}
    for name, metric in metrics.items():
        estimate = bootstrap(metric, (y_hat, y), groups=groups, weighted=True)
        remark = _absent(y, num_classes) if name in _PREDICTION_METRICS else ''
        if np.isnan(estimate.value):
            remark = 'labels and predictions are all one grade'
        result[name] = _remarked(estimate, remark)
    return result


def score_metrics(probabilities: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None, *,
                  ordinal: bool = False) -> dict[str, Estimate]:
    """All that predicted probabilities tell, with 95 % intervals.

    Args:
      probabilities: [N, C] in [0, 1], rows summing to 1, or [N] or [N, 1] for class 1 of two.
      labels: [N] int in [0, C).
      groups: [N] patient ids, resampled as wholes, or None.
      ordinal: as for `verdict_metrics`.

    Returns:
      Name to estimate: those of `verdict_metrics` on the most probable class, and auroc,
      average_precision, sensitivity_at_95_specificity, expected_calibration_error.

    Raises:
      ValueError: no examples, shapes differ, a class outside [0, C), or a NaN probability.
    """
    p = _as_matrix(probabilities)
    if not np.isfinite(p).all():
        row = int(np.argmin(np.isfinite(p).all(-1)))
        raise ValueError(f'probabilities must be finite; row {row} holds {p[row]}')
    y = _checked_classes(labels, p.shape[1], 'labels')
    result = verdict_metrics(p.argmax(-1), y, groups, p.shape[1], ordinal=ordinal)
    for name, metric in _SCORE_METRICS.items():
        estimate = bootstrap(metric, (p, y), groups=groups, weighted=True)
        remark = '' if name == 'expected_calibration_error' else _absent(y, p.shape[1])
        if np.isnan(estimate.value):
            remark = f'labels hold one class only, {y[0]}'
        result[name] = _remarked(estimate, remark)
    return result


def _remarked(estimate: Estimate, remark: str) -> Estimate:
    if not remark:
        return estimate
    kind = 'undefined' if np.isnan(estimate.value) else estimate.method
    return estimate._replace(method=f'{kind} ({remark})')


def _absent(labels: np.ndarray, num_classes: int) -> str:
    """The remark that names classes without examples; empty where there are none."""
    missing = np.setdiff1d(np.arange(num_classes), labels)
    names = ', '.join(map(str, missing))
    return f'over the classes present; without examples: {names}' if len(missing) else ''


def _checked_classes(values: ArrayLike, num_classes: int, what: str) -> np.ndarray:
    classes = np.asarray(values)
    if classes.ndim != 1 or not len(classes) or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f'{what} must be [N] integers, got shape {classes.shape}, {classes.dtype}')
    outside = (classes < 0) | (classes >= num_classes)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f'{what} must lie in [0, {num_classes}); row {row} holds {classes[row]}')
    return classes


def _as_matrix(probabilities: ArrayLike) -> np.ndarray:
    """[N, C] with C >= 2; a single column is the probability of class 1 of two."""
    p = np.asarray(probabilities, float)
    p = p[:, None] if p.ndim == 1 else p
    if p.ndim != 2 or not p.shape[1]:
        raise ValueError(f'probabilities must be [N, C] or [N], got shape {p.shape}')
    return np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p


def _weights_of(weights: Weights, n: int) -> np.ndarray:
    return np.ones(n) if weights is None else np.asarray(weights, float)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, NaN without a warning where the denominator is zero."""
    safe = np.where(denominator == 0, 1, denominator)
    return np.where(denominator == 0, np.nan, numerator / safe)


def _sums(weights: np.ndarray, ids: np.ndarray, size: int) -> np.ndarray:
    """Weights [..., N] summed by id [N] in [0, size): [..., size]."""
    rows = weights.reshape(-1, weights.shape[-1])
    flat = ids + size * np.arange(len(rows))[:, None]
    totals = np.bincount(flat.ravel(), weights=rows.ravel(), minlength=size * len(rows))
    return totals.reshape(*weights.shape[:-1], size)


def _confusion(predictions: ArrayLike, labels: ArrayLike, weights: Weights) -> np.ndarray:
    """Weighted counts [..., true class, predicted class]."""
    y_hat, y = np.asarray(predictions), np.asarray(labels)
    size = int(max(y_hat.max(), y.max())) + 1
    counts = _sums(_weights_of(weights, y.size), y * size + y_hat, size * size)
    return counts.reshape(*counts.shape[:-1], size, size)


def _one_vs_rest(statistic: Callable[..., np.ndarray], probabilities: ArrayLike,
                 labels: ArrayLike, weights: Weights) -> Any:
    """The mean over the classes present of `statistic(positives, negatives)`, by falling score."""
    p, y = _as_matrix(probabilities), np.asarray(labels)
    w = _weights_of(weights, len(y))
    present = np.unique(y)
    if len(present) < 2:
        return np.full(w.shape[:-1], np.nan)[()]
    values = []
    for positive in [1] if p.shape[1] == 2 else present:
        # Equal scores share a threshold: they are summed before anything is accumulated.
        scores, ids = np.unique(-p[:, positive], return_inverse=True)
        is_positive = (y == positive).astype(float)
        values.append(statistic(_sums(w * is_positive, ids, len(scores)),
                                _sums(w * (1 - is_positive), ids, len(scores))))
    return np.mean(values, axis=0)[()]


def _binary_auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    beaten = negatives.sum(-1, keepdims=True) - negatives.cumsum(-1) + negatives / 2
    return _divide((positives * beaten).sum(-1), positives.sum(-1) * negatives.sum(-1))


def _binary_average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    caught = positives.cumsum(-1)
    # Before the first drawn example precision is 0/0; its weight there is 0.
    precision = np.nan_to_num(_divide(caught, caught + negatives.cumsum(-1)))
    value = _divide((positives * precision).sum(-1), positives.sum(-1))
    return np.where(negatives.sum(-1) == 0, np.nan, value)


def _binary_sensitivity(positives: np.ndarray, negatives: np.ndarray, *,
                        specificity: float) -> np.ndarray:
    # 1e-9 of an example: .05 x 100 must not fall short of 5 by rounding.
    allowed = (1 - specificity) * negatives.sum(-1, keepdims=True) + 1e-9
    caught = np.where(negatives.cumsum(-1) <= allowed, positives.cumsum(-1), 0).max(-1)
    value = _divide(caught, positives.sum(-1))
    return np.where(negatives.sum(-1) == 0, np.nan, value)
