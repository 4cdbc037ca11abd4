"""Agreement of two outputs by hand, and the AUROC of a score against scikit-learn."""
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medrobust_jax.metrics.agreement import agreement_metrics, agreement_values, foreign_auroc


def test_masks_and_points_by_hand():
    mask = np.zeros((3, 8, 4), np.uint8)
    mask[0, :2], mask[1, :4] = 1, 1
    other = np.zeros_like(mask)
    other[0, 1:3] = 1
    points = np.full((3, 5, 2), .5)
    moved = points + np.array([.25, .25])  # a pixel across, two down
    values = agreement_values({'mask': mask, 'points': moved}, {'mask': other, 'points': points})
    np.testing.assert_allclose(values['output_dice'], [.5, 0, 1])
    np.testing.assert_allclose(values['output_point_distance'], 5**.5)


def test_label_maps_count_the_classes_that_one_of_them_holds():
    one = np.array([[[0, 1], [2, 2]], [[0, 0], [0, 0]], [[3, 3], [0, 0]]])
    other = np.array([[[0, 1], [2, 0]], [[0, 0], [0, 0]], [[0, 0], [1, 1]]])
    np.testing.assert_allclose(agreement_values(one, other)['output_dice'], [(1 + 2 / 3) / 2, 1, 0])
    estimates = agreement_metrics(one, other)
    assert set(estimates) == {'output_dice', 'reached'}
    assert estimates['reached'].value == pytest.approx(1 / 3)
    assert agreement_metrics(one, one, np.array(['a', 'a', 'b']))['reached'].value == 1


def test_the_auroc_is_scikit_learns_and_pairs_are_resampled_together():
    generator = np.random.default_rng(0)
    real = generator.normal(size=40)
    foreign = real + .6 * generator.normal(size=40) + .5
    found = foreign_auroc(real, foreign)
    assert found.value == pytest.approx(roc_auc_score([0] * 40 + [1] * 40, np.concatenate([real, foreign])))
    assert found.low < found.value < found.high
    assert found.n == 40
    assert foreign_auroc(real, real).value == .5
    assert foreign_auroc(real, real + 10, np.arange(40) // 4)[:3] == (1, 1, 1)
    assert foreign_auroc(real, real - 10).value == 0
