"""How sure a number is: intervals and paired tests for small medical test sets.

Contents: `Estimate`, `wilson`, `proportion`, `bootstrap`, `mean_of`, `mcnemar`, `paired_bootstrap`,
`newcombe`, `paired_difference`, `weighted_mean`.

Images of one patient resemble each other, so where patient ids exist the patients are resampled,
never the images: an interval over images would be too narrow.

Example:

    estimate = proportion(acceptable, groups=patient_ids)
    print(f'{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}], n = {estimate.n}')
    auc = bootstrap(auroc, (probabilities, labels), groups=patient_ids, weighted=True)
    p = mcnemar(natural_acceptable, robust_acceptable)
"""
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from medrobust_jax.core.checks import check_groups

_CHUNK = 4_000_000  # weights held at a time while resampling: 32 MB
NO_WIDTH = 1e-12  # of an interval: what rounding leaves


class Estimate(NamedTuple):
    """A number with its interval.

    Attributes:
      value: the point estimate; NaN where the data do not define it.
      low: lower end of the interval; NaN where there is none. Never above `value`.
      high: upper end of the interval; NaN where there is none. Never below `value`.
      n: the number of examples (images, not patients) behind it.
      method: 'wilson', 'newcombe' or 'bootstrap', with '-patients' where these were counted or
        resampled, followed by a remark in parentheses where there is one; 'undefined (reason)'
        where `value` is NaN.
    """

    value: float
    low: float
    high: float
    n: int
    method: str


def wilson(successes: int | float, n: int | float, *, level: float = 0.95) -> Estimate:
    """The Wilson score interval of a proportion, valid for independent examples.

    With `p = successes / n` and z the normal quantile of `(1 + level) / 2`:

        (p + z^2/2n  -+  z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)

    Unlike the textbook `p -+ z sqrt(p (1 - p)/n)` it stays within [0, 1] and has a width even where
    every example, or none, succeeded.

    Args:
      successes: how many succeeded, in [0, n].
      n: out of how many; at least 1.
      level: the coverage, in (0, 1).

    Returns:
      The estimate; the interval always holds it.

    Raises:
      ValueError: n < 1, or successes outside [0, n].

    References: Wilson, JASA 1927; Brown, Cai, DasGupta, Statistical Science 2001.
    """
    if n < 1:
        raise ValueError(f'a proportion needs at least one example, got n = {n}')
    if not 0 <= successes <= n:
        raise ValueError(f'successes must lie in [0, n = {n}], got {successes}')
    z = float(special.ndtri((1 + _checked_level(level)) / 2))
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding may leave 1e-17 where the formula yields exactly 0, 1 or p.
    low = 0.0 if successes == 0 else min(p, max(0.0, center - half))
    high = 1.0 if successes == n else max(p, min(1.0, center + half))
    return Estimate(float(p), float(low), float(high), int(n), 'wilson')


def proportion(acceptable: ArrayLike, groups: ArrayLike | None = None, *,
               num_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Estimate:
    """The share of examples that meet the criterion, with the interval that fits the data.

    Wilson over images where each image is its own patient; otherwise a bootstrap over patients.
    Where all images agree a bootstrap would claim certainty, so the interval is Wilson's with the
    number of patients as its n, which treats the images of a patient as one.

    Args:
      acceptable: [N] bool.
      groups: [N] patient ids of any type, or None.
      num_resamples: bootstrap resamples.
      seed: of the resampling.
      level: the coverage, in (0, 1).

    Returns:
      The estimate; `method` says which interval it carries.

    Raises:
      ValueError: no examples, or not boolean, or `groups` of another length.
    """
    values = np.asarray(acceptable)
    if values.ndim != 1 or not _is_binary(values):
        raise ValueError(f'acceptable must be [N] bool, got shape {values.shape}, {values.dtype}')
    n = len(values)
    ids, num_groups = _group_ids(groups, n)
    if num_groups == n:
        return wilson(int(values.sum()), n, level=level)
    if values.min() == values.max():
        of_patients = wilson(num_groups * int(values[0]), num_groups, level=level)
        return of_patients._replace(n=n, method='wilson-patients')
    return bootstrap(weighted_mean, (values.astype(float),), groups=ids, weighted=True,
                     num_resamples=num_resamples, seed=seed, level=level)


def bootstrap(statistic: Callable[..., Any], arrays: Sequence[ArrayLike], *,
              groups: ArrayLike | None = None, num_resamples: int = 1000, seed: int = 0,
              level: float = 0.95, weighted: bool = False) -> Estimate:
    """The percentile bootstrap interval of any statistic, over examples or over patients.

    Resamples on which the statistic is NaN (an AUROC without positives) are left out of the
    quantiles and counted in `method`. The interval is widened to hold the value where a biased
    statistic's quantiles miss it.

    Args:
      statistic: `(*arrays) -> float`; NaN where undefined. With `weighted`, it also takes
        `weights [R, N]`, how often each example was drawn, and returns `[R]`: all resamples at
        once, which is what makes an AUROC's bootstrap take milliseconds.
      arrays: arrays with the common leading axis N, resampled together.
      groups: [N] patient ids; whole patients are resampled when given.
      num_resamples: how many resamples.
      seed: of the resampling; equal seeds draw equal resamples for equal groups.
      level: the coverage, in (0, 1).
      weighted: whether `statistic` takes `weights`.

    Returns:
      The estimate. Without a second example or patient to draw it has no interval (NaN).

    Raises:
      ValueError: no examples, or arrays of different lengths.

    References: Efron, Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    data, n = _checked_arrays(arrays)
    ids, num_groups = _group_ids(groups, n)
    value = float(statistic(*data))
    draws = _resampled(statistic, data, ids, num_groups, num_resamples, seed, weighted)
    return _percentile(value, draws, n, num_groups, level)


def paired_bootstrap(statistic: Callable[..., Any], arrays_a: Sequence[ArrayLike],
                     arrays_b: Sequence[ArrayLike], *, groups: ArrayLike | None = None,
                     num_resamples: int = 1000, seed: int = 0, level: float = 0.95,
                     weighted: bool = False) -> Estimate:
    """The difference of a statistic between two models on the same examples: b minus a.

    Both models see the same resample each time, so what makes an example hard for both cancels.
    The difference is significant at 1 - level where the interval excludes 0.

    Args:
      statistic: as for `bootstrap`.
      arrays_a: the first model's arrays, leading axis N.
      arrays_b: the second model's arrays, in the same order of examples.
      groups: [N] patient ids, or None.
      num_resamples: how many resamples.
      seed: of the resampling.
      level: the coverage, in (0, 1).
      weighted: as for `bootstrap`.

    Returns:
      The estimate of `statistic(b) - statistic(a)`.

    Raises:
      ValueError: no examples, or arrays of different lengths.
    """
    a, n = _checked_arrays(arrays_a)
    b, n_b = _checked_arrays(arrays_b)
    if n != n_b:
        raise ValueError(f'paired arrays must hold the same examples, got {n} and {n_b}')
    ids, num_groups = _group_ids(groups, n)
    of_a, of_b = (_resampled(statistic, data, ids, num_groups, num_resamples, seed, weighted)
                  for data in (a, b))
    value = float(statistic(*b)) - float(statistic(*a))
    return _percentile(value, of_b - of_a, n, num_groups, level)


def newcombe(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None, *, level: float = 0.95
             ) -> Estimate:
    """Newcombe's hybrid score interval of the difference of two paired proportions, `mean(b) - mean(a)`.

    With the Wilson intervals [l_a, u_a] and [l_b, u_b] of the two proportions p_a and p_b, and phi
    the correlation of the paired verdicts:

        low  = d - sqrt((p_b - l_b)^2 - 2 phi (p_b - l_b)(u_a - p_a) + (u_a - p_a)^2)
        high = d + sqrt((u_b - p_b)^2 - 2 phi (u_b - p_b)(p_a - l_a) + (p_a - l_a)^2)

    where d = p_b - p_a. phi = (n11 n00 - n10 n01) / sqrt(product of the four margins), whose
    numerator is made max(numerator - n/2, 0) where it is positive, and which is 0 where a margin is
    empty. The interval stays within [-1, 1] and has a width where no verdicts, or all of them,
    differ.

    Differs from the paper in: with several images per patient the Wilson intervals, and the n of
    the continuity correction, are of as many examples as there are patients, with the same shares,
    which treats the images of a patient as one; the proportions are still over images. [ours]

    Args:
      a: `[N]` verdicts of the first model, bool or 0 and 1.
      b: `[N]` verdicts of the second on the same examples.
      groups: `[N]` patient ids, or None.
      level: the coverage, in (0, 1).

    Returns:
      The estimate.

    Raises:
      ValueError: no examples, shapes that differ, or values other than 0 and 1.

    References: Newcombe, Improved confidence intervals for the difference between binomial
    proportions based on paired data, Statistics in Medicine 1998, method 10.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 1 or a.shape != b.shape or not (_is_binary(a) and _is_binary(b)):
        raise ValueError(f'paired verdicts must be [N] bool twice, got shapes {a.shape} and {b.shape}')
    a, b = a.astype(bool), b.astype(bool)
    size = len(a)
    _, n = _group_ids(groups, size)
    of_a, of_b = (wilson(each.mean() * n, n, level=level) for each in (a, b))
    both, neither, only_a, only_b = (n * each.mean() for each in (a & b, ~a & ~b, a & ~b, b & ~a))
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    product = both * neither - only_a * only_b
    phi = (max(product - n / 2, 0) if product > 0 else product) / np.sqrt(margins) if margins > 0 else 0.0

    def distance(one: float, other: float) -> float:
        return float(np.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2)))

    value = of_b.value - of_a.value
    low = value - distance(of_b.value - of_b.low, of_a.high - of_a.value)
    high = value + distance(of_b.high - of_b.value, of_a.value - of_a.low)
    return Estimate(value, low, high, size, 'newcombe' if n == size else 'newcombe-patients')


def paired_difference(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """The mean of `b - a`, `[N]` each, with its paired bootstrap interval over examples or patients.

    Where every resample has the same difference the bootstrap would claim certainty; that of
    verdicts has Newcombe's interval instead. That of other values keeps the bootstrap.

    Raises:
      ValueError: no examples, or arrays of different lengths.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    estimate = paired_bootstrap(weighted_mean, (a,), (b,), groups=groups, weighted=True)
    # Not `low == high`: resampled means that should be equal differ in their last bits.
    if estimate.high - estimate.low < NO_WIDTH and _is_binary(a) and _is_binary(b):
        return newcombe(a, b, groups)
    return estimate


def mean_of(values: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """The mean of one number per example, `[N]`, with its bootstrap interval over examples or patients."""
    return bootstrap(weighted_mean, (values,), groups=groups, weighted=True)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """McNemar's exact test: are two models equally often right on the same examples?

    Only the examples on which exactly one model is right speak; under equality each is a fair
    coin: `p = min(1, 2 P[Binomial(b + c, 1/2) <= min(b, c)])`.

    The examples must be independent; with several images per patient use `paired_bootstrap`.

    Args:
      correct_a: [N] bool, the first model's verdicts.
      correct_b: [N] bool, the second model's verdicts on the same examples.

    Returns:
      The two-sided p-value in (0, 1]; 1 where the models never disagree.

    Raises:
      ValueError: shapes differ, or no examples.

    References: McNemar, Psychometrika 1947 (the exact, binomial form).
    """
    a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f'verdicts must be [N] bool twice, N >= 1, got {a.shape} and {b.shape}')
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a == only_b:
        return 1.0
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def weighted_mean(values: np.ndarray, weights: np.ndarray | None = None) -> Any:
    """The mean of `values` `[N]`, or with `weights` `[R, N]` of R resamples, for weighted bootstraps."""
    return np.mean(values) if weights is None else weights @ values / weights.sum(-1)


def _is_binary(values: np.ndarray) -> bool:
    return values.dtype == bool or bool(np.isin(values, (0, 1)).all())


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f'level must lie in (0, 1), got {level}')
    return level


def _checked_arrays(arrays: Sequence[ArrayLike]) -> tuple[list[np.ndarray], int]:
    data = [np.asarray(array) for array in arrays]
    lengths = {len(array) for array in data}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f'arrays must share a leading axis of at least 1, got {sorted(lengths)}')
    return data, lengths.pop()


def _group_ids(groups: ArrayLike | None, n: int) -> tuple[np.ndarray | None, int]:
    """Group ids as 0..G-1 and G; None where each example is its own group."""
    if n < 1:
        raise ValueError('an interval needs at least one example, got none')
    if groups is None:
        return None, n
    raw = np.asarray(groups)
    if raw.shape != (n,):
        raise ValueError(f'groups must hold one id per example, [{n}], got shape {raw.shape}')
    check_groups(raw)
    unique, ids = np.unique(raw, return_inverse=True)
    return (None, n) if len(unique) == n else (ids, len(unique))


def _weights(n: int, ids: np.ndarray | None, num_groups: int, num_resamples: int,
             seed: int) -> Iterator[np.ndarray]:
    """How often each example is drawn, in chunks [r, N] of `num_resamples` rows in all."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_resamples, width := max(1, _CHUNK // n)):
        size = min(width, num_resamples - start)
        counts = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=size)
        yield (counts if ids is None else counts[:, ids]).astype(float)


def _resampled(statistic: Callable[..., Any], data: list[np.ndarray], ids: np.ndarray | None,
               num_groups: int, num_resamples: int, seed: int, weighted: bool) -> np.ndarray:
    """The statistic on every resample, [num_resamples]."""
    n, values = len(data[0]), []
    for weights in _weights(n, ids, num_groups, num_resamples, seed):
        if weighted:
            values.append(np.asarray(statistic(*data, weights=weights), float))
            continue
        for row in weights.astype(int):
            drawn = np.repeat(np.arange(n), row)
            values.append(np.asarray([statistic(*(array[drawn] for array in data))], float))
    return np.concatenate(values)


def _percentile(value: float, draws: np.ndarray, n: int, num_groups: int,
                level: float) -> Estimate:
    tail = (1 - _checked_level(level)) / 2
    method = 'bootstrap' if num_groups == n else 'bootstrap-patients'
    if np.isnan(value):
        return Estimate(value, np.nan, np.nan, n, 'undefined (on these examples)')
    defined = draws[~np.isnan(draws)]
    if num_groups < 2 or not len(defined):
        reason = 'a single example or patient' if num_groups < 2 else 'no resample defines it'
        return Estimate(value, np.nan, np.nan, n, f'{method} (no interval: {reason})')
    if len(defined) < len(draws):
        method += f' ({len(draws) - len(defined)} of {len(draws)} resamples undefined, left out)'
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Estimate(value, float(min(low, value)), float(max(high, value)), n, method)
