"""Spine phantoms: what they depend on, and that points, masks and pixels agree."""
import numpy as np
import pytest

from medrobust_jax.core.polygons import spine_contour
from medrobust_jax.data.phantoms_spine import spine_phantoms
from medrobust_jax.data.source import gather
from medrobust_jax.metrics.cobb import cobb_angles


def test_images_depend_on_seed_split_and_row_alone():
    images, targets, _ = gather(spine_phantoms('val', num_examples=4))
    longer, more, _ = gather(spine_phantoms('val', num_examples=6))
    np.testing.assert_array_equal(images, longer[:4])
    np.testing.assert_array_equal(targets['points'], more['points'][:4])
    for other in (spine_phantoms('train', num_examples=4), spine_phantoms('val', num_examples=4, seed=1)):
        assert (gather(other)[0] != images).any((1, 2, 3)).all()


@pytest.mark.parametrize(('size', 'vertebrae'), [((64, 32), 6), (48, 4), ((128, 64), 17)])
def test_points_masks_and_pixels_agree(size, vertebrae):
    images, targets, _ = gather(spine_phantoms('test', num_examples=12, size=size, num_vertebrae=vertebrae))
    points, masks = targets['points'], targets['segmentation']
    assert points.shape == (12, 4 * vertebrae, 2)
    assert points.min() > 0
    assert points.max() < 1
    inside = np.array([image[mask > 0].mean() for image, mask in zip(images, masks, strict=True)])
    outside = np.array([image[mask == 0].mean() for image, mask in zip(images, masks, strict=True)])
    assert (inside > outside + .1).all()
    # Corners in the order that the contour and the angles expect.
    outline = points[:, spine_contour(4 * vertebrae)]
    following = np.roll(outline, -1, axis=1)
    area = .5 * np.abs((outline[..., 0] * following[..., 1] - outline[..., 1] * following[..., 0]).sum(1))
    np.testing.assert_allclose(masks.mean((1, 2)), area, atol=.02)
    assert (points[:, 0::2, 0] < points[:, 1::2, 0]).all()
    angles = cobb_angles(points * [masks.shape[2], masks.shape[1]], masks.shape[1])
    assert 5 < angles[:, 0].mean() < 80
    assert angles[:, 0].std() > 2


def test_refusals():
    with pytest.raises(ValueError, match="has the splits train, val, test; not 'dev'"):
        spine_phantoms('dev')
    for options in ({'num_examples': 0}, {'num_vertebrae': 1}, {'size': 8}):
        with pytest.raises(ValueError, match='spine_phantom needs'):
            spine_phantoms('test', **options)
