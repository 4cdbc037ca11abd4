"""Metrics of label maps against scikit-learn and brute force."""
import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from medrobust_jax.metrics.segmentation import dice, hausdorff95, iou, label_map_metrics

GENERATOR = np.random.default_rng(0)


def blobs(shape, count, classes=3):
    """Random smooth label maps, some of them without some class."""
    noise = ndimage.gaussian_filter(GENERATOR.normal(size=(count, *shape, classes)), (0, *[2] * len(shape), 0))
    noise[..., 0] += .05
    return noise.argmax(-1)


@pytest.mark.parametrize('shape', [(12, 14), (6, 7, 8)], ids=str)
def test_dice_and_iou_are_scikit_learns(shape):
    p, t = blobs(shape, 6), blobs(shape, 6)
    for row in range(6):
        for c in (1, 2):
            if (p[row] == c).any() or (t[row] == c).any():
                yes, other = (t[row] == c).ravel(), (p[row] == c).ravel()
                assert dice(p, t, 3)[row, c - 1] == pytest.approx(sklearn_metrics.f1_score(yes, other))
                assert iou(p, t, 3)[row, c - 1] == pytest.approx(sklearn_metrics.jaccard_score(yes, other))


def brute_hausdorff(a, b):
    def surface(mask):
        return np.argwhere(mask & ~ndimage.binary_erosion(mask))
    one, two = surface(a), surface(b)
    gaps = np.linalg.norm(one[:, None] - two[None], axis=-1)
    return np.percentile(np.concatenate([gaps.min(1), gaps.min(0)]), 95)


@pytest.mark.parametrize('shape', [(15, 12), (7, 6, 8)], ids=str)
def test_hausdorff_is_that_of_all_pairs(shape):
    for p, t in zip(blobs(shape, 8) > 0, blobs(shape, 8) > 0, strict=True):
        assert hausdorff95(p, t) == pytest.approx(brute_hausdorff(p, t))
        assert hausdorff95(p, t) == hausdorff95(t, p)
        assert hausdorff95(p, p) == 0


def test_hausdorff_by_hand_and_where_a_structure_is_missing():
    a, b = np.zeros((5, 8), bool), np.zeros((5, 8), bool)
    a[2, 1], b[2, 6] = True, True
    assert hausdorff95(a, b) == 5
    assert hausdorff95(a, np.zeros_like(a)) == hausdorff95(np.zeros_like(a), a) == pytest.approx(np.hypot(5, 8))
    assert np.isnan(hausdorff95(np.zeros_like(a), np.zeros_like(a)))
    with pytest.raises(ValueError, match='equal shapes'):
        hausdorff95(a, b[:4])


def test_means_and_intervals():
    p, t = blobs((10, 10), 30), blobs((10, 10), 30)
    t[0], p[0] = 0, 0
    found = label_map_metrics(p, t, np.arange(30) // 3, class_names=('background', 'a', 'b'))
    per_class = np.nanmean(dice(p, t, 3), axis=0)
    assert found['dice_a'].value == pytest.approx(per_class[0])
    assert found['dice'].value == pytest.approx(per_class.mean())
    assert found['pixel_accuracy'].value == pytest.approx((p == t).mean())
    names = {f'{m}{s}' for m in ('dice', 'iou', 'hd95') for s in ('', '_a', '_b')}
    assert set(found) == names | {'pixel_accuracy'}
    for estimate in found.values():
        assert estimate.low < estimate.value < estimate.high
        assert estimate.method == 'bootstrap-patients'
    missing = label_map_metrics(p * 0, t * 0, class_names=('background', 'a', 'b'))
    assert np.isnan(missing['dice'].value)
    assert missing['dice'].method.startswith('undefined')


def test_refusals():
    p = blobs((4, 4), 2)
    with pytest.raises(ValueError, match='prediction 1 holds the class 7'):
        dice(np.where(np.arange(2)[:, None, None] == 1, 7, p), p, 3)
    with pytest.raises(ValueError, match='twice'):
        dice(p, p[:, :2], 3)
