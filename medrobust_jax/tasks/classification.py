"""Single-label classification, two classes included.

Contents: `classification`.

Example:

    task = classification(num_classes=2)
    losses = task.loss(logits, labels)          # [B]
"""
from functools import partial

import jax
import numpy as np

from medrobust_jax.core.checks import check_labels
from medrobust_jax.core.types import Array, Outputs, Targets, Task
from medrobust_jax.losses.classification import cross_entropy, kl_divergence, prediction_is_right
from medrobust_jax.metrics import classification as quality


def classification(num_classes: int, *, label_smoothing: float = 0.0) -> Task:
    """The task of naming one class of `num_classes`.

    Outputs are logits `[B, num_classes]`, targets labels `[B]` int. Loss: cross-entropy.
    Criterion: the largest logit is the label's. Divergence: KL between softmax outputs.

    Args:
      num_classes: >= 2; two classes have two logits.
      label_smoothing: in [0, 1), for training; evaluation leaves it at 0.

    Raises:
      ValueError: for values out of range.
    """
    if num_classes < 2 or not 0 <= label_smoothing < 1:
        raise ValueError(f'classification needs num_classes >= 2 and label_smoothing in [0, 1), '
                         f'not {num_classes} and {label_smoothing}')

    def metrics(outputs: Outputs, targets: Targets, groups: np.ndarray | None = None) -> dict:
        probabilities = np.asarray(jax.nn.softmax(np.asarray(outputs, np.float32), axis=-1))
        return quality.score_metrics(probabilities, np.asarray(targets), groups)

    def verdict_metrics(predictions: Array, targets: Targets, groups: np.ndarray | None = None) -> dict:
        return quality.verdict_metrics(np.asarray(predictions), np.asarray(targets), groups, num_classes)

    return Task(name='classification', num_outputs=num_classes, target_names=('label',),
                targets=lambda batch: batch['label'],
                loss=partial(cross_entropy, label_smoothing=label_smoothing), acceptable=prediction_is_right,
                divergence=kl_divergence, predict=lambda outputs: outputs.argmax(axis=-1),
                metrics=metrics, verdict_metrics=verdict_metrics,
                check_targets=partial(check_labels, num_classes=num_classes))
