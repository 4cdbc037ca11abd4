"""Quality of multi-label predictions, in NumPy: per finding, as means over findings, and over all pairs.

Contents: `mean_auroc`, `mean_average_precision`, `mean_f1` (macro); `micro_auroc`, `micro_average_precision`
(micro); with intervals `verdict_metrics` (decisions alone) and `score_metrics` (probabilities).

All take `weights [..., N]` as the functions of `metrics.classification` do. A finding that no example has,
or that all have, leaves AUROC undefined; it is left out of the means and named in `method`.

Example:

    estimates = score_metrics(probabilities, findings, patient_ids, names=('mass', 'nodule'))
    estimates['auroc'].value, estimates['auroc/mass'].low
"""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.metrics.classification import auroc, average_precision
from medrobust_jax.metrics.intervals import Estimate, bootstrap, mean_of, proportion

Weights = np.ndarray | None


def mean_auroc(probabilities: ArrayLike, findings: ArrayLike, weights: Weights = None) -> Any:
    """The mean over findings of the area under the ROC curve.

    Args:
      probabilities: [N, L], or any scores that rise with them.
      findings: [N, L], 0 or 1.
      weights: [..., N] >= 0, or None for all 1.

    Returns:
      [...] in [0, 1]; NaN where no finding defines it, and on resamples that lose all positives or all
      negatives of a finding that the examples do define.
    """
    return _mean_over_findings(auroc, probabilities, findings, weights)


def mean_average_precision(probabilities: ArrayLike, findings: ArrayLike, weights: Weights = None) -> Any:
    """The mean over findings of average precision; arguments and result as `mean_auroc`."""
    return _mean_over_findings(average_precision, probabilities, findings, weights)


def micro_auroc(probabilities: ArrayLike, findings: ArrayLike, weights: Weights = None) -> Any:
    """The area under the ROC curve of all pairs of an image and a finding taken together.

    P[score of a pair that is present > score of one that is absent] + P[equal] / 2. It compares scores across
    findings, so that a frequent finding that gets higher scores than a rare one counts in its favor.

    Args:
      probabilities: [N, L]; scores of different findings are compared, so they must share a scale.
      findings: [N, L], 0 or 1.
      weights: [..., N] >= 0, of the images, or None for all 1.

    Returns:
      [...] in [0, 1]; NaN where no pair is present, or all are.

    References: `roc_auc_score(average='micro')` of scikit-learn, which is the same number.
    """
    return _over_pairs(auroc, probabilities, findings, weights)


def micro_average_precision(probabilities: ArrayLike, findings: ArrayLike, weights: Weights = None) -> Any:
    """Average precision of all pairs of an image and a finding; arguments and result as `micro_auroc`."""
    return _over_pairs(average_precision, probabilities, findings, weights)


def mean_f1(predictions: ArrayLike, findings: ArrayLike, weights: Weights = None) -> Any:
    """The mean over findings of F1 = 2 TP / (2 TP + FP + FN), 0 where a finding has none of the three.

    Args:
      predictions: [N, L], 0 or 1.
      findings: [N, L], 0 or 1.
      weights: [..., N] >= 0, or None for all 1.

    Returns:
      [...] in [0, 1].
    """
    y_hat, y = np.asarray(predictions, float), np.asarray(findings, float)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, float)
    hits, sizes = w @ (y_hat * y), w @ (y_hat + y)
    return np.where(sizes > 0, 2 * hits / np.where(sizes > 0, sizes, 1), 0).mean(-1)


def verdict_metrics(predictions: ArrayLike, findings: ArrayLike, groups: ArrayLike | None = None, *,
                    names: Sequence[str] | None = None) -> dict[str, Estimate]:
    """All that decisions alone tell, with 95 % intervals.

    Args:
      predictions: [N, L], 0 or 1.
      findings: [N, L], 0 or 1.
      groups: [N] patient ids, resampled as wholes, or None.
      names: of the findings; None numbers them.

    Returns:
      Name to estimate: 'exact_match' (all findings right), 'accuracy' (mean over findings), 'macro_f1', and
      'accuracy/<finding>' for each.

    Raises:
      ValueError: no examples, unequal shapes, or values other than 0 and 1.
    """
    y_hat, y = _checked(predictions, 'predictions'), _checked(findings, 'findings')
    names = _checked_names(names, y)
    if y_hat.shape != y.shape:
        raise ValueError(f'predictions {y_hat.shape} and findings {y.shape} must have equal shapes')
    right = y_hat == y
    result = {'exact_match': proportion(right.all(axis=1), groups),
              'accuracy': mean_of(right.mean(axis=1), groups),
              'macro_f1': bootstrap(mean_f1, (y_hat, y), groups=groups, weighted=True)}
    return result | {f'accuracy/{name}': proportion(right[:, column], groups)
                     for column, name in enumerate(names)}


def score_metrics(probabilities: ArrayLike, findings: ArrayLike, groups: ArrayLike | None = None, *,
                  names: Sequence[str] | None = None) -> dict[str, Estimate]:
    """All that probabilities tell, with 95 % intervals.

    Args:
      probabilities: [N, L] in [0, 1].
      findings: [N, L], 0 or 1.
      groups: as in `verdict_metrics`.
      names: as in `verdict_metrics`.

    Returns:
      Those of `verdict_metrics` at probability 1/2, and 'auroc', 'average_precision' (means over findings),
      'micro_auroc', 'micro_average_precision' (over all pairs of an image and a finding), and
      'auroc/<finding>', 'average_precision/<finding>' for each.

    Raises:
      ValueError: as `verdict_metrics`, or a probability that is not finite.
    """
    p = np.asarray(probabilities, float)
    if not np.isfinite(p).all():
        row = int(np.argmin(np.isfinite(p).all(-1)))
        raise ValueError(f'probabilities must be finite; row {row} holds {p[row]}')
    result = verdict_metrics(p > .5, findings, groups, names=names)
    y = np.asarray(findings).astype(int)
    for metric, single, mean, micro in (
            ('auroc', auroc, mean_auroc, micro_auroc),
            ('average_precision', average_precision, mean_average_precision, micro_average_precision)):
        estimate = bootstrap(mean, (p, y), groups=groups, weighted=True)
        result[metric] = _remarked(estimate, y, _checked_names(names, y))
        result[f'micro_{metric}'] = bootstrap(micro, (p, y), groups=groups, weighted=True)
        for column, name in enumerate(_checked_names(names, y)):
            estimate = bootstrap(single, (p[:, column], y[:, column]), groups=groups, weighted=True)
            remark = 'undefined (no example with, or none without, the finding)'
            result[f'{metric}/{name}'] = estimate._replace(method=remark) if np.isnan(estimate.value) else estimate
    return result


def _mean_over_findings(statistic: Callable[..., Any], probabilities: ArrayLike, findings: ArrayLike,
                        weights: Weights) -> Any:
    p, y = np.asarray(probabilities, float), np.asarray(findings).astype(int)
    values = [statistic(p[:, column], y[:, column], weights) for column in np.flatnonzero(_has_both(y))]
    shape = () if weights is None else weights.shape[:-1]
    return np.mean(values, axis=0) if values else np.full(shape, np.nan)[()]


def _over_pairs(statistic: Callable[..., Any], probabilities: ArrayLike, findings: ArrayLike,
                weights: Weights) -> Any:
    p, y = np.asarray(probabilities, float), np.asarray(findings).astype(int)
    if weights is None:
        return statistic(p.ravel(), y.ravel())
    # As many pairs as L times the images: the resamples in L portions need no more memory than one finding's.
    rows = np.asarray(weights, float).reshape(-1, len(p))
    values = [statistic(p.ravel(), y.ravel(), np.repeat(part, p.shape[1], axis=-1))
              for part in np.array_split(rows, p.shape[1])]
    return np.concatenate(values).reshape(np.shape(weights)[:-1])[()]


def _has_both(findings: np.ndarray) -> np.ndarray:
    """[L] bool: some examples have the finding and some do not."""
    return (findings.min(axis=0) == 0) & (findings.max(axis=0) == 1)


def _remarked(estimate: Estimate, findings: np.ndarray, names: Sequence[str]) -> Estimate:
    missing = [name for name, both in zip(names, _has_both(findings), strict=True) if not both]
    if len(missing) == len(names):
        return estimate._replace(method='undefined (no finding has examples with and without it)')
    remark = f' (over the findings that vary; without {", ".join(missing)})' if missing else ''
    return estimate._replace(method=estimate.method + remark)


def _checked(values: ArrayLike, what: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 2 or not array.size:
        raise ValueError(f'{what} must be [N, findings], got shape {array.shape}')
    bad = ((array != 0) & (array != 1)).any(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f'{what} must be 0 or 1; row {row} holds {array[row]}')
    return array.astype(int)


def _checked_names(names: Sequence[str] | None, findings: np.ndarray) -> Sequence[str]:
    names = [str(column) for column in range(findings.shape[1])] if names is None else names
    if len(names) != findings.shape[1]:
        raise ValueError(f'{len(names)} names for {findings.shape[1]} findings')
    return names
