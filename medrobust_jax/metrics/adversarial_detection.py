"""How well a detector tells attacked images from clean ones, from its scores; NumPy.

(Boxes around findings are `metrics.detection`'s.)

Contents: `detection_metrics`, `detection_rate`.

Example:

    estimates = detection_metrics(scores_of_clean, scores_of_attacked, patient_ids)
    print(estimates['auroc'].value, estimates['tpr_at_5_percent'].low)
"""
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.metrics.classification import auroc, sensitivity_at_specificity
from medrobust_jax.metrics.intervals import Estimate, bootstrap, wilson


def detection_metrics(clean: ArrayLike, attacked: ArrayLike, groups: ArrayLike | None = None, *,
                      rows: ArrayLike | None = None,
                      false_alarm_rates: Sequence[float] = (0.01, 0.05)) -> dict[str, Estimate]:
    """AUROC and detection rates, with 95 % intervals.

    A clean image and the attacked one made of it, and all images of a patient, are resampled together. Where all
    resamples agree, as with perfect separation, a bootstrap would claim certainty: the interval is then Wilson's
    with the number of images (or patients) that both sides have at least.

    Args:
      clean: `[N]`, scores of clean images, higher = more like clean.
      attacked: `[M]`, scores of attacked images.
      groups: `[N]` patient ids of the clean images, or None.
      rows: `[M]` int, of which clean image each attacked one was made; None where M = N, in the same order.
      false_alarm_rates: shares of clean images that may be rejected, in [0, 1).

    Returns:
      'auroc': P[clean score > attacked score] + P[equal] / 2; and 'tpr_at_1_percent', ...: `detection_rate`. Their
      n is the number of attacked images. The threshold of a rate is chosen on the very clean images of `clean`,
      which is customary and optimistic; `detectors.threshold.calibrate` chooses on others.

    Raises:
      ValueError: no scores on a side, a NaN, rows that do not fit, or a rate out of range.
    """
    s, t = _checked(clean, 'clean'), _checked(attacked, 'attacked')
    origin = _checked_rows(rows, len(s), len(t))
    patients = np.arange(len(s)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if patients.shape != s.shape:
        raise ValueError(f'groups must hold one id per clean image, [{len(s)}], got {patients.shape}')
    scores, is_clean = np.concatenate([s, t]), np.repeat([1, 0], [len(s), len(t)])
    ids = np.concatenate([patients, patients[origin]])
    least = min(len(np.unique(patients)), len(np.unique(patients[origin])))
    names = {f'tpr_at_{100 * rate:g}_percent': rate for rate in false_alarm_rates}
    statistics: dict[str, Any] = {'auroc': auroc}
    statistics |= {name: partial(detection_rate, false_alarm_rate=rate) for name, rate in names.items()}
    result = {}
    for name, statistic in statistics.items():
        estimate = bootstrap(statistic, (scores, is_clean), groups=ids, weighted=True)
        of_patients = least < min(len(s), len(np.unique(origin)))
        estimate = _honest(estimate._replace(n=len(t)), least, of_patients)
        if name in names and names[name] * len(s) < 1:
            estimate = estimate._replace(method=f'{estimate.method} (no false alarm: {len(s)} clean images)')
        result[name] = estimate
    return result


def detection_rate(scores: ArrayLike, is_clean: ArrayLike, weights: np.ndarray | None = None, *,
                   false_alarm_rate: float) -> Any:
    """The largest share of attacked images below a threshold below which at most a given share of clean ones lie.

    Args:
      scores: `[N]`, higher = more like clean.
      is_clean: `[N]` 0 or 1.
      weights: `[..., N]` >= 0, how often each counts, or None for all 1.
      false_alarm_rate: in [0, 1).

    Returns:
      `[...]` in [0, 1], or NaN where a side is empty.

    Raises:
      ValueError: for a rate out of range.
    """
    if not 0 <= false_alarm_rate < 1:
        raise ValueError(f'false_alarm_rate = {false_alarm_rate} must lie in [0, 1)')
    return sensitivity_at_specificity(-np.asarray(scores, float), 1 - np.asarray(is_clean), weights,
                                      specificity=1 - false_alarm_rate)


def _honest(estimate: Estimate, count: int, of_patients: bool) -> Estimate:
    """A bootstrap says of how many it is; one without width at 0 or 1 gives way to Wilson's interval."""
    kind = '-patients' if of_patients else ''
    method = estimate.method.replace('bootstrap-patients', f'bootstrap{kind}')
    if estimate.low == estimate.high and estimate.value in (0, 1):
        certain = wilson(estimate.value * count, count)
        return estimate._replace(low=certain.low, high=certain.high, method=f'wilson{kind}')
    return estimate._replace(method=method)


def _checked(scores: ArrayLike, what: str) -> np.ndarray:
    values = np.asarray(scores, float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f'scores of {what} images must be [N], N >= 1, got {values.shape}')
    if np.isnan(values).any():
        raise ValueError(f'the score of {what} image {int(np.isnan(values).argmax())} is NaN')
    return values


def _checked_rows(rows: ArrayLike | None, num_clean: int, num_attacked: int) -> np.ndarray:
    if rows is None and num_clean != num_attacked:
        raise ValueError(f'{num_clean} clean and {num_attacked} attacked images: give rows, the clean image that '
                         f'each attacked one was made of')
    origin = np.arange(num_clean) if rows is None else np.asarray(rows)
    if origin.shape != (num_attacked,) or not np.issubdtype(origin.dtype, np.integer):
        raise ValueError(f'rows must be [{num_attacked}] integers, got {origin.shape}, {origin.dtype}')
    if origin.min() < 0 or origin.max() >= num_clean:
        raise ValueError(f'rows must lie in 0..{num_clean - 1}, got {origin.min()}..{origin.max()}')
    return origin
