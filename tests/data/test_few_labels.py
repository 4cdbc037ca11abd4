"""Which examples keep their labels, and that those of the others cannot be read."""
import itertools

import numpy as np
import pytest

from medrobust_jax.data.few_labels import ImagesOnly, few_labels, labeled_rows
from medrobust_jax.data.source import ArraySource, Source, all_labels, all_of, read_batch

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [200, 60, 4]))


def test_every_class_has_its_share_and_one_at_least():
    for fraction, expected in ((.01, (2, 1, 1)), (.05, (10, 3, 1)), (.25, (50, 15, 1)), (1.0, (200, 60, 4))):
        rows = labeled_rows(LABELS, fraction, seed=3)
        np.testing.assert_array_equal(np.bincount(LABELS[rows]), expected)
        assert (np.diff(rows) > 0).all()


def test_smaller_fractions_are_parts_of_larger_ones():
    rows = [set(labeled_rows(LABELS, fraction, seed=7)) for fraction in (.01, .05, .1, .25, 1.0)]
    for fewer, more in itertools.pairwise(rows):
        assert fewer < more


def test_the_choice_is_the_seeds_and_fair():
    np.testing.assert_array_equal(labeled_rows(LABELS, .05, seed=1), labeled_rows(LABELS, .05, seed=1))
    counts = sum(np.bincount(labeled_rows(LABELS, .1, seed=seed), minlength=len(LABELS)) for seed in range(200))
    of_largest = counts[LABELS == 0] / 200
    assert abs(of_largest.mean() - .1) < 1e-9
    assert of_largest.std() < 2 * np.sqrt(.1 * .9 / 200)  # as independent draws would give
    assert (of_largest > 0).all()


def make_source(targets=LABELS):
    pixels = np.zeros((len(LABELS), 4, 4, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(LABELS)) % 256
    return ArraySource(pixels, targets, name='rows', class_names='abc', groups=np.arange(len(LABELS)))


def test_a_source_with_few_labels():
    source = make_source()
    few = few_labels(source, .05, seed=0)
    np.testing.assert_array_equal(all_labels(few), LABELS[labeled_rows(LABELS, .05, seed=0)])
    assert few.info.fingerprint != few_labels(source, .05, seed=1).info.fingerprint
    whole = few_labels(source, 1.0, seed=0)
    np.testing.assert_array_equal(read_batch(whole, np.arange(len(whole)))['image'],
                                  read_batch(source, np.arange(len(source)))['image'])


def test_sources_without_classes_are_one_class():
    masks = np.zeros((len(LABELS), 4, 4), int)
    few = few_labels(make_source({'segmentation': masks}), .1, seed=0)
    assert len(few) == 26


def test_no_target_can_be_read_from_images_only():
    source = make_source()
    pool = ImagesOnly(source)
    assert isinstance(pool, Source)
    assert len(pool) == len(source)
    assert set(pool[3]) == set(read_batch(pool, [1, 2])) == {'image'}
    np.testing.assert_array_equal(pool[3]['image'], source[3]['image'])
    np.testing.assert_array_equal(read_batch(pool, [5, 2])['image'], read_batch(source, [5, 2])['image'])
    assert all_of(pool, 'label') is None
    assert not pool.info.has_groups


@pytest.mark.parametrize('fraction', [0.0, -.1, 1.01, float('nan')])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match=r'fraction = .* must be in \(0, 1\]'):
        labeled_rows(LABELS, fraction, seed=0)
