r"""A classifier with a detector as one task: what attackers who know more or less of it climb.

Outputs are `{'logits': [B, C], 'features': [B, D], 'score': [B]}`: the detector's score is higher for images that
look clean, and an image is accepted where it is at least tau. The system fails where an accepted image is
misclassified: a wrong answer reaches the clinic. A rejected image is safe, whatever its class.

Contents: `reaches`, and three tasks: `blind` (an attacker who knows the classifier alone), `joint` (who climbs
the classifier's loss and keeps the score above tau), `matching` (who makes the features those of a clean image of
another class, whatever the detector).

Example:

    task = joint(classification(4), tau=tau, spread=spread)
    loss = task.loss(outputs, {'label': labels, 'gamma': gammas})        # [B]
"""
from typing import Any

import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array, Outputs, Targets, Task

BLIND, JOINT, MATCHING = ('label',), ('label', 'gamma'), ('label', 'guide')  # what the targets of each hold


def reaches(task: Task, outputs: Outputs, labels: Array, *, tau: float | Array) -> Array:
    """Whether a wrong answer is accepted, `[B]` bool; a NaN score is not accepted."""
    return (outputs['score'] >= tau) & ~task.acceptable(outputs['logits'], labels)


def blind(task: Task) -> Task:
    """The classifier's own loss and criterion, on a system's outputs. Targets: `{'label'}`."""
    return _on_system(task, BLIND, lambda outputs, targets: task.loss(outputs['logits'], targets['label']),
                      lambda outputs, targets: task.acceptable(outputs['logits'], targets['label']))


def joint(task: Task, *, tau: float, spread: float, slack: float = 0.1) -> Task:
    """Deviate from the label and stay above the threshold.

        loss = L(f(x'), y) - gamma relu(tau + slack spread - s(x')) / spread

    Targets: `{'label' [B], 'gamma' [B] >= 0}`; gamma is data, so that it can be searched for per example without
    compiling anew. The criterion is the system's: rejected or right.

    Args:
      task: the classification.
      tau: the detector's threshold.
      spread: > 0, the standard deviation of the scores of clean images: the unit of what is missing, so that
        one gamma means the same for every detector [ours].
      slack: >= 0, how far above the threshold scores are pushed, in units of `spread` [ours].

    Raises:
      ValueError: for values out of range.
    """
    if not spread > 0 or slack < 0:
        raise ValueError(f'joint needs spread > 0 and slack >= 0, not {spread} and {slack}')

    def loss(outputs: Outputs, targets: Targets) -> Array:
        missing = jax.nn.relu(tau + slack * spread - outputs['score']) / spread
        return task.loss(outputs['logits'], targets['label']) - targets['gamma'] * missing

    return _on_system(task, JOINT, loss,
                      lambda outputs, targets: ~reaches(task, outputs, targets['label'], tau=tau))


def matching(task: Task, *, tau: float) -> Task:
    """Take on the features of a clean image that the system accepts in another class.

        loss = -||h(x') - h_guide||^2 / ||h_guide||^2

    It needs no gradient of the score, so it attacks every detector that reads these features. Targets: `{'label'
    [B], 'guide' [B, D]}`. The criterion is the system's.

    References: Sabour et al., Adversarial Manipulation of Deep Representations, ICLR 2016.
    """
    def loss(outputs: Outputs, targets: Targets) -> Array:
        guide = targets['guide']
        scale = jnp.maximum(jnp.sum(guide**2, axis=-1), 1e-12)
        return -jnp.sum((outputs['features'] - guide)**2, axis=-1) / scale

    return _on_system(task, MATCHING, loss,
                      lambda outputs, targets: ~reaches(task, outputs, targets['label'], tau=tau))


def _on_system(task: Task, names: tuple[str, ...], loss: Any, acceptable: Any) -> Task:
    """`task` on a system's outputs; targets are dicts of `names`."""
    return task._replace(
        target_names=names, targets=lambda batch: {name: batch[name] for name in names}, loss=loss,
        acceptable=acceptable, predict=lambda outputs: task.predict(outputs['logits']),
        divergence=lambda a, b: task.divergence(a['logits'], b['logits']),
        metrics=lambda outputs, targets, groups=None: task.metrics(outputs['logits'], targets['label'], groups),
        verdict_metrics=lambda predictions, targets, groups=None: task.verdict_metrics(
            predictions, targets['label'], groups),
        check_targets=lambda targets: task.check_targets(targets['label']), quality=None, threshold_of=None,
        margin=None)
