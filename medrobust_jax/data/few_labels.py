"""Training with few labels: which examples keep theirs, and images from which labels are withheld.

Contents: `labeled_rows`, `few_labels`, `ImagesOnly`, `check_fraction`.

Example:

    labeled = few_labels(source, 0.05, seed=0)        # 5 % of every class
    pool = ImagesOnly(source)                         # pool[3] is {'image': float32 [H, W, C]}
    batches = train_batches(labeled, batch_size=64, seed=0, cycle=True, unlabeled=pool)
"""
import dataclasses

import numpy as np

from medrobust_jax.data.source import Record, Source, Subset, all_of, read_batch


def labeled_rows(labels: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """Which rows keep their labels: of every class its share, rounded, and one at least.

    With one seed a smaller fraction's rows are among those of a larger one. Rows of one patient are drawn
    one by one, as labels are made image by image.

    Args:
      labels: `[N]` integers, the classes.
      fraction: in (0, 1].
      seed: of the order in which rows of a class are chosen.

    Returns:
      Rows, ascending.

    Raises:
      ValueError: for a fraction out of range.
    """
    check_fraction(fraction)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(label), 0x1ABE1])))
        count = max(1, int(np.floor(fraction * len(members) + .5)))
        chosen.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def few_labels(source: Source, fraction: float, *, seed: int) -> Subset:
    """The examples of `source` that keep their targets, see `labeled_rows`.

    Sources without a class per image (masks, points, boxes, findings) are one class.
    """
    labels = all_of(source, 'label')
    labels = np.zeros(len(source), int) if labels is None else labels
    return Subset(source, labeled_rows(labels, fraction, seed=seed))


class ImagesOnly:
    """The images of another source; no target and no group can be read from it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.info = dataclasses.replace(source.info, has_groups=False)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> Record:
        return {'image': self._source[row]['image']}

    def column(self, name: str) -> None:
        """None: there are no targets."""

    def batch(self, rows: np.ndarray) -> Record:
        """The images of several rows, stacked."""
        return {'image': read_batch(self._source, rows)['image']}


def check_fraction(fraction: float, *, field: str = 'fraction') -> None:
    """Raises ValueError unless 0 < fraction <= 1."""
    if not 0 < fraction <= 1:
        raise ValueError(f'{field} = {fraction} must be in (0, 1]: the share of training examples with labels')
