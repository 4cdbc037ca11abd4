"""Ordinal grades: classes with an order, such as the stages of diabetic retinopathy.

Contents: `ordinal`.

Example:

    task = ordinal(num_grades=5, tolerance=1)       # a grade off by one is still acceptable
"""
from functools import partial

import numpy as np
from scipy.special import expit

from medrobust_jax.core.checks import check_labels
from medrobust_jax.core.types import Array, Outputs, Targets, Task
from medrobust_jax.losses.ordinal import bernoulli_kl, cumulative_cross_entropy, predicted_grade
from medrobust_jax.metrics import classification as quality


def ordinal(num_grades: int, *, tolerance: int = 0) -> Task:
    """The task of naming a grade in 0..num_grades-1.

    Outputs are cumulative logits `[B, num_grades - 1]`, one for each question "is the grade above
    k?"; targets are grades `[B]` int. Loss: the sum of the binary cross-entropies. Criterion:
    |predicted - true| <= tolerance. Divergence: the sum of Bernoulli KLs.

    Args:
      num_grades: >= 2.
      tolerance: how many grades an acceptable prediction may be off, in 0..num_grades-2.

    Raises:
      ValueError: for values out of range.
    """
    if num_grades < 2 or not 0 <= tolerance <= num_grades - 2:
        raise ValueError(f'ordinal needs num_grades >= 2 and tolerance in 0..num_grades-2, '
                         f'not {num_grades} and {tolerance}')

    def acceptable(outputs: Outputs, targets: Targets) -> Array:
        finite = (abs(outputs) < np.inf).all(axis=-1)
        return finite & (abs(predicted_grade(outputs) - targets) <= tolerance)

    def metrics(outputs: Outputs, targets: Targets, groups: np.ndarray | None = None) -> dict:
        scores = quality.score_metrics(grade_probabilities(np.asarray(outputs)), np.asarray(targets), groups,
                                       ordinal=True)
        # The decision is the number of questions answered yes, not the most probable grade.
        return {**scores, **verdict_metrics(predicted_grade(outputs), targets, groups)}

    def verdict_metrics(predictions: Array, targets: Targets, groups: np.ndarray | None = None) -> dict:
        return quality.verdict_metrics(np.asarray(predictions), np.asarray(targets), groups, num_grades,
                                       ordinal=True)

    return Task(name='ordinal', num_outputs=num_grades - 1, target_names=('label',),
                targets=lambda batch: batch['label'], loss=cumulative_cross_entropy, acceptable=acceptable,
                divergence=bernoulli_kl, predict=predicted_grade, metrics=metrics,
                verdict_metrics=verdict_metrics, check_targets=partial(check_labels, num_classes=num_grades))


def grade_probabilities(logits: np.ndarray) -> np.ndarray:
    """The distribution over grades that cumulative logits `[N, K-1]` stand for, `[N, K]`.

    `P[y > k]` is made non-increasing in k by a running minimum, then differenced.
    """
    above = np.minimum.accumulate(expit(logits.astype(np.float64)), axis=1)
    bounds = np.concatenate([np.ones((len(above), 1)), above, np.zeros((len(above), 1))], axis=1)
    return bounds[:, :-1] - bounds[:, 1:]
