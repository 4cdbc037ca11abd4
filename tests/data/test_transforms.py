"""Augmentation: markers move with their points, boxes and masks; draws are per example."""
import jax
import numpy as np
import pytest

from medrobust_jax.core.rng import example_keys
from medrobust_jax.data import transforms

HEIGHT, WIDTH = 24, 32
GEOMETRY = {
    'flip_horizontal': transforms.flip_horizontal(p=1.),
    'flip_vertical': transforms.flip_vertical(p=1.),
    'shift': transforms.shift(max_pixels=4),
    'affine': transforms.affine(max_degrees=25., max_scale=.15, max_pixels=2.),
}


def marked_batch(count: int = 6) -> dict[str, np.ndarray]:
    """One bright 4x4 square per image, with its center, its box and its mask."""
    rows, columns = np.arange(count) % 4 + 7, np.arange(count) * 2 % 9 + 9
    image = np.zeros((count, HEIGHT, WIDTH, 1), np.float32)
    for which, (row, column) in enumerate(zip(rows, columns, strict=True)):
        image[which, row:row + 4, column:column + 4] = 1.
    size = np.array([WIDTH, HEIGHT], np.float32)
    corner = np.stack([columns, rows], -1)
    return {'image': image, 'segmentation': (image[..., 0] > 0).astype(np.int32) * 3,
            'points': ((corner + 2) / size)[:, None].astype(np.float32),
            'boxes': np.concatenate([corner / size, (corner + 4) / size], -1)[:, None].astype(np.float32),
            'label': np.arange(count, dtype=np.int32), 'index': np.arange(count, dtype=np.int32)}


def center_of_mass(planes: np.ndarray) -> np.ndarray:
    """(x, y) as fractions, [B, 2]."""
    weights = np.asarray(planes, np.float64) / np.asarray(planes, np.float64).sum((1, 2), keepdims=True)
    x = (weights.sum(1) * (np.arange(WIDTH) + .5)).sum(1) / WIDTH
    y = (weights.sum(2) * (np.arange(HEIGHT) + .5)).sum(1) / HEIGHT
    return np.stack([x, y], -1)


@pytest.mark.parametrize('name', GEOMETRY)
def test_marker_point_box_and_mask_move_together(name):
    batch = marked_batch()
    moved = jax.jit(GEOMETRY[name])(example_keys(3, batch['index']), batch)
    assert not np.allclose(moved['points'], batch['points'], atol=.01)  # something happened
    pixel = 1 / HEIGHT
    np.testing.assert_allclose(moved['points'][:, 0], center_of_mass(moved['image'][..., 0]), atol=.02 * pixel)
    np.testing.assert_allclose(moved['points'][:, 0], center_of_mass(moved['segmentation']), atol=.5 * pixel)
    box = np.asarray(moved['boxes'][:, 0])
    np.testing.assert_allclose((box[:, :2] + box[:, 2:]) / 2, moved['points'][:, 0], atol=1e-5)
    assert set(np.unique(moved['segmentation'])) == {0, 3}
    for image, (left, top, right, bottom) in zip(np.asarray(moved['image'][..., 0]), box, strict=True):
        rows, columns = np.nonzero(image > .5)
        assert left - pixel / 2 <= columns.min() / WIDTH
        assert (columns.max() + 1) / WIDTH <= right + pixel / 2
        assert top - pixel / 2 <= rows.min() / HEIGHT
        assert (rows.max() + 1) / HEIGHT <= bottom + pixel / 2
    np.testing.assert_array_equal(moved['label'], batch['label'])


def test_flip_and_shift_by_hand():
    batch = {'image': np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1) / 5,
             'points': np.float32([[[1 / 6, .25]]]), 'boxes': np.float32([[[0., 0., 1 / 3, .5]]])}
    keys = example_keys(0, np.arange(1))
    flipped = jax.jit(transforms.flip_horizontal(p=1.))(keys, batch)
    np.testing.assert_array_equal(flipped['image'][0, :, :, 0] * 5, [[2, 1, 0], [5, 4, 3]])
    np.testing.assert_allclose(flipped['points'][0, 0], [5 / 6, .25], atol=1e-6)
    np.testing.assert_allclose(flipped['boxes'][0, 0], [2 / 3, 0, 1, .5], atol=1e-6)
    same = jax.jit(transforms.shift(max_pixels=0))(keys, batch)
    np.testing.assert_array_equal(same['image'], batch['image'])


def test_zero_ranges_are_the_identity():
    batch = marked_batch()
    keys = example_keys(0, batch['index'])
    nothing = transforms.compose(
        transforms.flip_horizontal(p=0.), transforms.shift(max_pixels=0),
        transforms.affine(max_degrees=0., max_scale=0.), transforms.intensity())
    after = jax.jit(nothing)(keys, batch)
    for name in batch:
        np.testing.assert_allclose(after[name], batch[name], atol=1e-5, err_msg=name)


def test_edges_are_repeated():
    batch = {'image': np.full((8, 10, 10, 1), .7, np.float32), 'index': np.arange(8)}
    keys = example_keys(1, batch['index'])
    for transform in (transforms.shift(max_pixels=5), transforms.affine(max_degrees=40., max_pixels=4.)):
        np.testing.assert_allclose(jax.jit(transform)(keys, batch)['image'], .7, atol=1e-6)


@pytest.mark.parametrize('name', [name for name in transforms.TRANSFORMS if name != 'noise'])
def test_images_stay_in_range_and_draws_are_per_example(name):
    options = {'shift': {'max_pixels': 5}, 'affine': {'max_degrees': 90., 'max_scale': .5},
               'intensity': {'brightness': .5, 'contrast': 1., 'gamma': 1.}}
    image = np.random.default_rng(0).random((12, 12, 3), np.float32)
    batch = {'image': np.stack([image] * 12), 'index': np.arange(12)}
    keys = example_keys(5, batch['index'])
    transform = transforms.TRANSFORMS[name](**options.get(name, {}))
    after = np.asarray(jax.jit(transform)(keys, batch)['image'])
    assert after.dtype == np.float32
    assert 0 <= after.min() <= after.max() <= 1
    assert len({each.tobytes() for each in after}) > 1  # equal images came out different
    order = np.array([3, 0, 7, 1])
    part = jax.jit(transform)(keys[order], {'image': batch['image'][order], 'index': order})['image']
    np.testing.assert_allclose(part, after[order], atol=1e-6)  # company and place do not matter


def test_compose_gives_each_transform_its_own_draws():
    flip = transforms.flip_horizontal(p=.5)
    image = np.random.default_rng(0).random((64, 4, 4, 1), np.float32)
    twice = jax.jit(transforms.compose(flip, flip))(example_keys(0, np.arange(64)), {'image': image})['image']
    changed = (np.asarray(twice) != image).any((1, 2, 3))
    assert .2 < changed.mean() < .8  # shared draws would undo themselves


def test_intensity_by_hand():
    batch = {'image': np.full((3, 2, 2, 1), .25, np.float32)}
    after = jax.jit(transforms.intensity(gamma=1.))(example_keys(0, np.arange(3)), batch)['image'][:, 0, 0, 0]
    power = np.log(np.asarray(after)) / np.log(.25)
    assert ((power > .5) & (power < 2)).all()
    assert len(np.unique(after)) == 3


def test_noise_is_per_example_and_leaves_the_box():
    batch = {'image': np.zeros((40, 12, 12, 1), np.float32), 'label': np.arange(40)}
    keys = example_keys(0, np.arange(40))
    after = jax.jit(transforms.noise(sigma=.2))(keys, batch)
    noise = np.asarray(after['image'])
    assert noise.std() == pytest.approx(.2, rel=.03)
    assert abs(noise.mean()) < .01, 'clipped noise would be positive on black'
    np.testing.assert_array_equal(after['label'], batch['label'])
    part = jax.jit(transforms.noise(sigma=.2))(keys[7:9], {'image': batch['image'][7:9]})['image']
    np.testing.assert_array_equal(part, noise[7:9])


@pytest.mark.parametrize(('factory', 'options'), [
    (transforms.flip_vertical, {'p': 1.5}), (transforms.shift, {'max_pixels': -1}),
    (transforms.affine, {'max_degrees': 200.}), (transforms.affine, {'max_scale': -.1}),
    (transforms.noise, {'sigma': -.1}),
    (transforms.intensity, {'brightness': 2.}), (transforms.intensity, {'gamma': -1.})])
def test_ranges_are_checked(factory, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        factory(**options)


def test_volumes_are_refused():
    with pytest.raises(ValueError, match='2-D'):
        transforms.shift(max_pixels=1)(example_keys(0, np.arange(2)), {'image': np.zeros((2, 4, 4, 4, 1))})
