"""Which class a training image counts for, and how scores per class become one.

Contents: `class_of_rows`, `combine`, `draw_rows`, `seed_of`.

Example:

    rows, num_classes = class_of_rows(evidence, labels, grouping='predicted', what='gaussian')
    scores = combine(log_densities, log_priors, logits, how='max')      # [B, C] to [B]
"""
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.core.checks import check_labels, did_you_mean
from medrobust_jax.core.types import Array
from medrobust_jax.detectors.detector import Evidence, require

GROUPINGS = ('none', 'predicted', 'labels')
COMBINATIONS = ('max', 'logsumexp', 'predicted')


def class_of_rows(evidence: Evidence, labels: ArrayLike | None, *, grouping: str, what: str,
                  least: int = 1) -> tuple[np.ndarray, int]:
    """The class that every training image counts for.

    Args:
      evidence: of N training images.
      labels: `[N]` int, or None where `grouping` does not ask for them.
      grouping: 'none' (one class for all), 'predicted' (the model's own) or 'labels' (the true ones).
      what: the detector's name, for messages.
      least: how many images every class needs.

    Returns:
      `[N]` int in [0, number), and the number.

    Raises:
      ValueError: unknown grouping, no labels where they are asked for, or a class with too few images.
    """
    check_choice(grouping, GROUPINGS, f'grouping of {what}')
    logits = np.asarray(require(evidence, 'logits'))
    if grouping == 'none':
        return np.zeros(len(logits), np.int32), 1
    num_classes = logits.shape[1]
    if grouping == 'predicted':
        rows = logits.argmax(axis=1)
    elif labels is None:
        raise ValueError(f"{what} with grouping='labels' is fitted with the true classes, and labels is None")
    else:
        rows = np.asarray(labels)
        check_labels(rows, num_classes, what=f'labels of {what}')
        if len(rows) != len(logits):
            raise ValueError(f'{what}: {len(rows)} labels for {len(logits)} images')
    counts = np.bincount(rows, minlength=num_classes)
    if counts.min() < least:
        few = int(counts.argmin())
        kind = 'are predicted as' if grouping == 'predicted' else 'have'
        cure = '' if what == 'mahalanobis' else ", or set grouping='none'"
        raise ValueError(f'{what}: {counts[few]} training images {kind} class {few}, at least {least} must: '
                         f'fit on more images{cure}')
    return rows.astype(np.int32), num_classes


def combine(scores: Array, log_priors: Array | np.ndarray, logits: Array, *, how: str) -> Array:
    """One score from those of all classes.

    Args:
      scores: `[B, C]` log-densities, or `[B, 1]` where there is one class for all.
      log_priors: `[C]`, logarithms of the classes' shares among the training images; for 'logsumexp' alone.
      logits: `[B, C]`; for 'predicted' alone.
      how: 'max', 'logsumexp' (the density of the mixture) or 'predicted' (of the class that the model predicts).

    Returns:
      `[B]`.

    Raises:
      ValueError: for an unknown `how`.
    """
    check_choice(how, COMBINATIONS, 'combination of classes')
    if scores.shape[1] == 1:
        return scores[:, 0]
    if how == 'max':
        return scores.max(axis=1)
    if how == 'logsumexp':
        return jax.nn.logsumexp(scores + log_priors, axis=1)
    return jnp.take_along_axis(scores, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0]


def draw_rows(groups: np.ndarray, key: Array, *, most: int | None) -> np.ndarray:
    """At most `most` row numbers of every group, drawn without replacement, rising; all where it is None.

    Raises:
      ValueError: for most < 1.
    """
    if most is not None and most < 1:
        raise ValueError(f'num_reference = {most} must be at least 1, or None for all training images')
    order = np.random.default_rng(seed_of(key)).permutation(len(groups))
    drawn = [order[groups[order] == group][:most] for group in np.unique(groups)]
    return np.sort(np.concatenate(drawn))


def seed_of(key: Array) -> int:
    """A seed for NumPy and scikit-learn, below 2^31, from a typed key."""
    return int(jax.random.bits(key, dtype=jnp.uint32)) >> 1


def check_choice(value: str, known: tuple[str, ...], kind: str) -> None:
    """Raises ValueError, with the nearest name, unless `value` is one of `known`."""
    if value not in known:
        did_you_mean(value, known, kind)
