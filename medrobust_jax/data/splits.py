"""Splits for data sets that come without one: by class, by group, from a seed.

Contents: `SPLITS`, `stratified_split`.

Example:

    rows = stratified_split(labels, seed=0, groups=patients)['val']
"""
import numpy as np

from medrobust_jax.core.checks import check_groups

SPLITS = ('train', 'val', 'test')
FRACTIONS = (.7, .1, .2)


def stratified_split(labels: np.ndarray, *, seed: int = 0, fractions: tuple[float, ...] = FRACTIONS,
                     groups: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Splits rows into train, val and test, each class in the same proportions.

    Rows of one group stay together; a group counts for the class of its first row.

    Args:
      labels: `[N]` integers.
      seed: of the order within each class.
      fractions: of train, val and test; they add up to 1.
      groups: `[N]` ids, or None where every row stands alone.

    Returns:
      `{'train': rows, 'val': rows, 'test': rows}`, rows ascending.

    Raises:
      ValueError: for fractions that are negative or do not add up to 1, or a row without id among groups.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f'fractions = {fractions} must be three numbers >= 0 that add up to 1')
    labels = np.asarray(labels)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    check_groups(groups)
    _, first, group_of_row, sizes = np.unique(groups, return_index=True, return_inverse=True,
                                              return_counts=True)
    split_of_group = np.empty(len(first), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels[first] == label)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(label)])))
        members = generator.permutation(members)
        # A group goes where its middle falls on the class's line from 0 to 1.
        middles = (np.cumsum(sizes[members]) - sizes[members] / 2) / sizes[members].sum()
        split_of_group[members] = np.searchsorted(np.cumsum(fractions)[:2], middles, side='right')
    split_of_row = split_of_group[group_of_row]
    return {name: np.flatnonzero(split_of_row == number) for number, name in enumerate(SPLITS)}
