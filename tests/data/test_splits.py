"""Stratified splits: proportions by class, groups whole, a function of the seed."""
import numpy as np
import pytest

from medrobust_jax.data.splits import stratified_split


def test_proportions_hold_in_every_class():
    labels = np.repeat([0, 1, 2], [100, 40, 10])
    rows = stratified_split(labels, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(150))
    counts = np.stack([np.bincount(labels[rows[split]]) for split in ('train', 'val', 'test')])
    np.testing.assert_array_equal(counts, [[70, 28, 7], [10, 4, 1], [20, 8, 2]])


def test_groups_stay_whole_whatever_their_labels():
    generator = np.random.default_rng(0)
    groups, labels = generator.integers(0, 40, 300), generator.integers(0, 3, 300)
    rows = stratified_split(labels, seed=0, groups=groups)
    members = [set(groups[rows[split]]) for split in rows]
    assert all(members)
    assert not set.intersection(*members)
    assert not members[0] & members[2]
    assert sum(map(len, rows.values())) == 300
    assert .55 < len(rows['train']) / 300 < .85


def test_seed_decides():
    labels = np.arange(60) % 2
    same = [stratified_split(labels, seed=1)['val'].tolist() for _ in range(2)]
    assert same[0] == same[1] != stratified_split(labels, seed=2)['val'].tolist()


def test_fractions_are_checked():
    with pytest.raises(ValueError, match='add up to 1'):
        stratified_split(np.arange(5), fractions=(.5, .5, .5))


def test_rows_without_a_group_are_refused():
    with pytest.raises(ValueError, match=r'groups: row 3 holds .nan.'):
        stratified_split(np.zeros(5, int), groups=np.asarray([1, 1, 2, np.nan, np.nan]))
