"""Multi-label classification: several findings per image, each present or absent.

Contents: `multilabel`.

Example:

    task = multilabel(num_labels=14, tolerance=2)       # two wrong findings of 14 are still acceptable
    losses = task.loss(logits, findings)                # [B]
"""
import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from medrobust_jax.core.types import Array, Outputs, Targets, Task
from medrobust_jax.losses.multilabel import (
    binary_cross_entropy,
    mean_bernoulli_kl,
    multilabel_margin,
    wrong_labels,
)
from medrobust_jax.metrics import multilabel as metrics_of


def multilabel(num_labels: int, *, tolerance: float = 0, threshold: Sequence[float] | None = None,
               label_names: Sequence[str] | None = None) -> Task:
    """The task of deciding `num_labels` findings.

    Outputs are logits `[B, num_labels]`, targets 'findings' `[B, num_labels]` in {0, 1}. Loss: binary
    cross-entropy, mean over findings. Divergence: mean Bernoulli KL. Quality: minus the number of findings
    that are wrong at probability 1/2. Criterion: quality >= threshold, that is, at most `tolerance` wrong
    findings. The default 0 asks for all of them [ours]; of 14 findings a good model gets one wrong on most
    images, so there give a tolerance, or calibrate: `threshold_of` is minus the mean number of wrong findings
    of the model it is given, so that an output may have no more of them than the clean-trained model has
    on average.

    Args:
      num_labels: >= 1.
      tolerance: how many findings an acceptable output may get wrong, in [0, num_labels).
      threshold: `(-tolerance,)` as calibrated from a model; takes the place of `tolerance`.
      label_names: of the findings, for the names of metrics; None numbers them.

    Raises:
      ValueError: for values out of range.
    """
    (least,) = (-tolerance,) if threshold is None else _single(threshold)
    if num_labels < 1 or not -num_labels < least <= 0:
        raise ValueError(f'multilabel needs num_labels >= 1 and a tolerance (or minus threshold) in '
                         f'[0, num_labels), not {num_labels} and {-least}')
    if label_names is not None and len(label_names) != num_labels:
        raise ValueError(f'label_names has {len(label_names)} names for num_labels = {num_labels}')

    def quality(outputs: Outputs, targets: Targets) -> Array:
        finite = jnp.isfinite(outputs).all(axis=-1)
        return jnp.where(finite, -wrong_labels(outputs, targets).astype(jnp.float32), jnp.nan)

    def metrics(outputs: Outputs, targets: Targets, groups: np.ndarray | None = None) -> dict:
        probabilities = expit(np.asarray(outputs, np.float64))
        return metrics_of.score_metrics(probabilities, np.asarray(targets), groups, names=label_names)

    def verdict_metrics(predictions: Array, targets: Targets, groups: np.ndarray | None = None) -> dict:
        return metrics_of.verdict_metrics(np.asarray(predictions), np.asarray(targets), groups, names=label_names)

    return Task(name='multilabel', num_outputs=num_labels, target_names=('findings',),
                targets=lambda batch: batch['findings'], loss=binary_cross_entropy,
                acceptable=lambda outputs, targets: quality(outputs, targets) >= least,
                divergence=mean_bernoulli_kl, predict=lambda outputs: (outputs > 0).astype(jnp.uint8),
                metrics=metrics, verdict_metrics=verdict_metrics,
                check_targets=lambda targets: check_findings(targets, num_labels), quality=quality,
                threshold_of=lambda qualities: (float(np.mean(qualities)),),
                margin=partial(multilabel_margin, tolerance=math.floor(-least)))


def check_findings(findings: Targets, num_labels: int) -> None:
    """Raises ValueError, with the row, unless `findings` are `[N, num_labels]` of 0 and 1."""
    array = np.asarray(findings)
    if array.ndim != 2 or array.shape[1] != num_labels:
        raise ValueError(f'findings of shape {array.shape} are not [batch, {num_labels}]; change num_labels '
                         'or the data')
    bad = np.flatnonzero(((array != 0) & (array != 1)).any(axis=1))
    if bad.size:
        raise ValueError(f'findings must be 0 or 1; row {bad[0]} holds {array[bad[0]]} ({bad.size} such rows)')


def _single(threshold: Sequence[float]) -> tuple[float]:
    if len(threshold) != 1:
        raise ValueError(f'multilabel has one threshold, minus the number of wrong findings, not {threshold}')
    return (float(threshold[0]),)
