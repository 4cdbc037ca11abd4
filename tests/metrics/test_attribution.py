"""Measures between maps: against SciPy, by hand, and where they have no answer."""
import numpy as np
import pytest
from scipy.ndimage import center_of_mass
from scipy.stats import spearmanr

from medrobust_jax.metrics.attribution import MEASURES, center_shift, rank_correlation, top_overlap

GENERATOR = np.random.default_rng(0)
FIRST, SECOND = (np.maximum(GENERATOR.normal(size=(5, 6, 9)).round(1), 0) for _ in range(2))  # half ties at 0


def test_rank_correlation_is_scipys_with_ties():
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(FIRST, SECOND, strict=True)]
    np.testing.assert_allclose(rank_correlation(FIRST, SECOND), expected, atol=1e-12)
    np.testing.assert_allclose(rank_correlation(FIRST, FIRST.max() - FIRST), -1, atol=1e-12)


def test_centers_are_scipys():
    expected = [np.subtract(center_of_mass(a), center_of_mass(b)) for a, b in zip(FIRST, SECOND, strict=True)]
    np.testing.assert_allclose(center_shift(FIRST, SECOND),
                               np.linalg.norm(expected, axis=1) / np.sqrt(6 ** 2 + 9 ** 2), atol=1e-12)
    corner, opposite = np.zeros((2, 1, 3, 4))
    corner[0, 0, 0], opposite[0, 2, 3] = 1, 5
    assert center_shift(corner, opposite)[0] == pytest.approx(np.hypot(2, 3) / 5)


def test_overlap_by_hand():
    first = np.arange(20.).reshape(1, 4, 5)
    second = first.copy()
    second[0, 3, 4] = 0  # of the two brightest, 18 and 19, the second map holds 18, and 17 in place of 19
    assert top_overlap(first, second)[0] == pytest.approx(1 / 3)
    assert top_overlap(first, second, share=.05)[0] == 0
    assert top_overlap(first, second, share=1)[0] == pytest.approx(18 / 19), 'a pixel of value 0 is never bright'


def test_overlap_does_not_depend_on_where_ties_lie():
    """One bright pixel, all others 0: the remaining places of the top tenth are not filled up with zeros."""
    first, second = np.zeros((2, 1, 10, 10))
    first[0, 0, 0] = second[0, 9, 9] = 1
    assert top_overlap(first, second)[0] == 0
    level, raised = np.ones((1, 10, 10)), np.ones((1, 10, 10))
    raised[0, 5, 5] = 2
    assert top_overlap(level, raised)[0] == 1, 'all pixels tie for the top'


@pytest.mark.parametrize('name', MEASURES)
def test_common_properties(name):
    measure = MEASURES[name]
    same = 0 if name == 'center_shift' else 1
    np.testing.assert_allclose(measure(FIRST, FIRST), same, atol=1e-12)
    np.testing.assert_allclose(measure(FIRST, 7 * FIRST), same, atol=1e-12)
    np.testing.assert_allclose(measure(FIRST, SECOND), measure(SECOND, FIRST), atol=1e-12)
    order = [3, 0, 4, 2, 1]
    np.testing.assert_array_equal(measure(FIRST[order], SECOND[order]), measure(FIRST, SECOND)[order])
    nowhere = np.concatenate([np.zeros((1, 6, 9)), FIRST[1:]])
    np.testing.assert_array_equal(np.isnan(measure(nowhere, SECOND)), [True, *[False] * 4])
    with pytest.raises(ValueError, match=r'\[N, H, W\]'):
        measure(FIRST, SECOND[:, :5])
    with pytest.raises(ValueError, match='row 2 is not'):
        measure(FIRST, np.where(np.arange(5)[:, None, None] == 2, -1., SECOND))


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match='share = 0'):
        top_overlap(FIRST, SECOND, share=0)
