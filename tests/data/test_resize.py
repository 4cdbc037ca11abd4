"""Resizing: block averages by hand, dtypes kept, the range never left."""
import numpy as np
import pytest

from medrobust_jax.data.resize import describe, resize_images


def test_whole_blocks_are_averaged():
    image = np.array([[0, 10, 100, 100], [20, 30, 100, 104]], np.uint8)[None, ..., None]
    np.testing.assert_array_equal(resize_images(image, (1, 2))[0, :, :, 0], [[15, 101]])
    assert describe((2, 4, 1), (1, 2)) == ', resized from 2x4 to 1x2 (box)'


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize('size', [7, 33, (5, 64)])
def test_dtype_and_range_are_kept(dtype, size):
    high = 1 if dtype == np.float32 else 255 if dtype == np.uint8 else 65535
    images = (np.random.default_rng(0).random((3, 20, 20, 3)) > .5).astype(dtype) * dtype(high)
    small = resize_images(images, size)
    assert small.dtype == dtype
    assert small.shape == (3, *((size, size) if isinstance(size, int) else size), 3)
    assert 0 <= small.min() <= small.max() <= high
    np.testing.assert_array_equal(small, resize_images(images, size))
    constant = np.full((1, 20, 20, 1), high, dtype)
    np.testing.assert_array_equal(resize_images(constant, size), high)


def test_same_size_changes_nothing():
    images = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert resize_images(images, 4) is images
    assert describe((4, 4, 3), 4) == ''
    assert describe((4, 4, 3), None) == ''


@pytest.mark.parametrize('size', [0, (3, -1), (1, 2, 3)])
def test_bad_sizes(size):
    with pytest.raises(ValueError, match='size'):
        resize_images(np.zeros((1, 4, 4, 1), np.uint8), size)


def test_volumes_are_refused():
    with pytest.raises(ValueError, match='2-D'):
        resize_images(np.zeros((1, 4, 4, 4, 1), np.uint8), 2)
