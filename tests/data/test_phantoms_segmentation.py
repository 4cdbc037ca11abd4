"""Drawn hearts: what an image depends on, what is in it, refusals."""
import numpy as np
import pytest
from scipy import ndimage

from medrobust_jax.data.phantoms_segmentation import CLASS_NAMES, cardiac_phantoms, cardiac_volumes


@pytest.mark.parametrize(('opener', 'shape'), [(cardiac_phantoms, (32, 32, 1)),
                                               (cardiac_volumes, (16, 16, 16, 1))], ids=['slices', 'volumes'])
def test_an_image_depends_on_its_number_alone(opener, shape):
    few, more = opener('train', num_examples=4, size=shape[0]), opener('train', num_examples=6, size=shape[0])
    assert few[0]['image'].shape == shape
    assert few[0]['segmentation'].shape == shape[:-1]
    for row in range(4):
        np.testing.assert_array_equal(few[row]['image'], more[row]['image'])
        np.testing.assert_array_equal(few[row]['segmentation'], more[row]['segmentation'])
    others = [opener('test', num_examples=1, size=shape[0]),
              opener('train', num_examples=1, size=shape[0], seed=1)]
    assert all((other[0]['image'] != few[0]['image']).any() for other in others)
    assert few.info.class_names == CLASS_NAMES


def test_anatomy():
    source = cardiac_phantoms('train', num_examples=200, size=48)
    record = source.batch(np.arange(200))
    maps, images = record['segmentation'], record['image'][..., 0]
    assert np.unique(maps).tolist() == [0, 1, 2, 3]
    empty = maps.reshape(200, -1).max(1) == 0
    assert 2 <= empty.sum() <= 30
    for label_map in maps[~empty]:
        # The left ventricle touches nothing but its ring.
        around = ndimage.binary_dilation(label_map == 3) & (label_map != 3)
        assert set(np.unique(label_map[around])) <= {2}
    means = [images[maps == c].mean() for c in range(4)]
    assert means[2] < means[1]
    assert means[2] < means[3]


def test_refusals():
    for options in ({'size': 8}, {'num_examples': 0}):
        with pytest.raises(ValueError, match='needs num_examples >= 1 and one number size >= 16'):
            cardiac_phantoms('train', **options)
    with pytest.raises(ValueError, match='splits train, val, test'):
        cardiac_volumes('training')
