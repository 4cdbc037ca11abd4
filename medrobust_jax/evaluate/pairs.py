"""Evaluations compared image by image: what must agree, and the paired differences.

Contents: `check_alike`, `measures`, `is_supported`, `paired_difference`, `paired_rows`, `quality_columns`.

Example:

    check_alike([amat, sat], 'amat and sat')                       # verdicts of one attack on two models
    for row in paired_rows([amat], [sat], eps=1., lower_is_claimed=False):
        print(row['measure'], row['difference'], row['low'], row['high'])
"""
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from medrobust_jax.evaluate.verdicts import Verdicts
from medrobust_jax.metrics import intervals
from medrobust_jax.metrics.intervals import Estimate, mcnemar

PARTS = ('box', 'objectness', 'class')  # of a detector's quality, the only one with several columns
# What may differ between two models that are compared; everything else must not.
_WHO = ('model', 'defense', 'seed', 'config_fingerprint', 'checkpoint_fingerprint')
# What must agree between two attacks on one model.
_SHARED = ('dataset', 'split', 'dataset_fingerprint', 'task', 'criterion', 'stop_when_fooled', 'norm',
           'attack_seed')
_NOT_STORED = object()  # older files say less of themselves


def check_alike(verdicts: Sequence[Verdicts], what: str, *, settings: bool = True) -> None:
    """Raises ValueError, naming what differs, unless evaluations may be compared.

    Args:
      verdicts: the evaluations.
      what: they are, for the message.
      settings: whether the attack's must agree; of two attacks only images, criterion and ball must.
    """
    one, differing = verdicts[0], []
    for other in verdicts[1:]:
        names = [name for name in {**one.about, **other.about} if name not in _WHO] if settings else _SHARED
        for name in names:
            a, b = (each.about.get(name, _NOT_STORED) for each in (one, other))
            if a != b and not (name == 'task' and _NOT_STORED in (a, b)):
                differing.append(f'{name} ({_said(a)}, {_said(b)})')
        if not np.array_equal(one.index, other.index):
            both = len(np.intersect1d(one.index, other.index))
            differing.append(f'images ({len(one.index)} and {len(other.index)}, {both} of them in both)')
        elif not _same_patients(one.groups, other.groups):
            differing.append('patients')
    if differing:
        raise ValueError(f'{what}: these evaluations cannot be compared; they differ in '
                         + '; '.join(dict.fromkeys(differing)))


def _same_patients(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _said(value: Any) -> str:
    return 'not stored' if value is _NOT_STORED else str(value)


def paired_rows(ours: Sequence[Verdicts], theirs: Sequence[Verdicts], eps: float | None, *,
                lower_is_claimed: bool) -> Iterator[dict[str, Any]]:
    """One row per measure that all evaluations hold: the first side minus the second, paired by seed and image.

    An image's difference is its mean over the seeds; patients, or images where there are none, are resampled, so
    that the interval is of the test set, not of training.

    Args:
      ours: one evaluation per seed, on the same images.
      theirs: the same seeds in the same order.
      eps: in all of their grids; None for clean images.
      lower_is_claimed: whether the claim is that the first side is lower (a stronger attack), not higher.

    Returns:
      Plain values. 'supported' is True where the whole interval is on the claim's side of zero, False where it is
      on the other; 'by_seed' are the differences of single seeds; 'patients' is their number where some have
      several images; 'mcnemar_p' stands beside verdicts of one seed where every image is a patient of its own.
    """
    groups, about = ours[0].groups, ours[0].about
    patients = None if groups is None or len(np.unique(groups)) == len(groups) else len(np.unique(groups))
    alone = len(ours) == 1 and patients is None
    tables = [[measures(each, eps) for each in side] for side in (ours, theirs)]
    for name in tables[0][0]:
        if not all(name in table for side in tables for table in side):
            logging.warning('%s is not stored in all files: no row of it', name)
            continue
        a, b = (np.stack([table[name] for table in side]).astype(float) for side in tables)
        difference = paired_difference(a.mean(axis=0), b.mean(axis=0), groups)
        yield {'dataset': about['dataset'], 'split': about['split'], 'norm': '' if eps is None else about['norm'],
               'eps': eps or 0., 'measure': name, 'first_value': float(a.mean()),
               'second_value': float(b.mean()),
               'difference': difference.value, 'low': difference.low, 'high': difference.high,
               'interval': difference.method,
               'supported': is_supported(difference, lower_is_claimed=lower_is_claimed),
               'mcnemar_p': mcnemar(a[0] > 0, b[0] > 0) if name == 'robust_accuracy' and alone else None,
               'n': a.shape[1], 'patients': patients,
               'seeds': [each.about['seed'] for each in ours], 'by_seed': (a - b).mean(axis=1).tolist(),
               'criterion': about.get('criterion', []), 'dataset_fingerprint': about['dataset_fingerprint'],
               'first_checkpoints': [each.about['checkpoint_fingerprint'] for each in ours],
               'second_checkpoints': [each.about['checkpoint_fingerprint'] for each in theirs]}


def measures(verdicts: Verdicts, eps: float | None) -> dict[str, np.ndarray]:
    """'quality' (one entry per column where there are several) and 'robust_accuracy', `[N]` each.

    Args:
      verdicts: of one evaluation.
      eps: one of its grid; None for clean images.
    """
    at = None if eps is None else int(np.flatnonzero(verdicts.eps == eps)[0])
    acceptable = verdicts.withstood_clean if at is None else verdicts.acceptable[at]
    quality = verdicts.clean_quality if at is None else None if verdicts.quality is None else verdicts.quality[at]
    return {**({} if quality is None else quality_columns(quality)), 'robust_accuracy': acceptable}


def quality_columns(quality: np.ndarray) -> dict[str, np.ndarray]:
    """A task's quality, `[N]` or `[N, k]`, as named columns: 'quality', or one per part ('quality_box')."""
    if quality.ndim == 1:
        return {'quality': quality}
    parts = PARTS if quality.shape[1:] == (3,) else tuple(map(str, range(1, quality[0].size + 1)))
    return {f'quality_{part}': column for part, column in zip(parts, quality.T, strict=True)}


def is_supported(difference: Estimate, *, lower_is_claimed: bool) -> bool | None:
    """True where the whole interval is on the claim's side of zero, False where it is on the other, else None."""
    low, high = (-difference.high, -difference.low) if lower_is_claimed else (difference.low, difference.high)
    return True if low > 0 else False if high < 0 else None


def paired_difference(first: np.ndarray, second: np.ndarray, groups: np.ndarray | None) -> Estimate:
    """The mean of `first - second`, `[N]` each, with its interval, see `metrics.intervals.paired_difference`."""
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return Estimate(np.nan, np.nan, np.nan, len(first), 'undefined (an output is not finite)')
    return intervals.paired_difference(second, first, groups)
