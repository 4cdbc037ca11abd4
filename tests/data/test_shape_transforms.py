"""The shape-model augmentation: points and pixels move together, one key per example."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core import rng
from medrobust_jax.core.polygons import rasterize, spine_contour
from medrobust_jax.data.phantoms_spine import spine_phantoms
from medrobust_jax.data.shape_transforms import model_of, shape_warp, warped_source
from medrobust_jax.data.source import gather, read_batch

SOURCE = spine_phantoms('train', num_examples=40, size=(48, 24), num_vertebrae=4)
MODEL = model_of(SOURCE, num_modes=5)
TRANSFORM = jax.jit(shape_warp(MODEL))
BATCH = {**read_batch(SOURCE, np.arange(8)), 'index': np.arange(8)}
KEYS = rng.example_keys(3, np.arange(8))


def dice(a, b):
    return 2 * (a & b).sum((1, 2)) / (a.sum((1, 2)) + b.sum((1, 2)))


def test_points_masks_and_pixels_move_together():
    warped = jax.tree.map(np.asarray, TRANSFORM(KEYS, BATCH))
    assert set(warped) == set(BATCH)
    assert (np.abs(warped['points'] - BATCH['points']).max((1, 2)) > .03).all()
    outline = rasterize(warped['points'][:, spine_contour(16)], (48, 24))
    assert dice(warped['segmentation'] > 0, outline).min() > .93
    assert dice(BATCH['segmentation'] > 0, outline).mean() < .9
    contrast = [image[mask].mean() - image[~mask].mean()
                for image, mask in zip(warped['image'], outline, strict=True)]
    assert min(contrast) > .1
    assert warped['segmentation'].dtype == np.int32
    assert warped['image'].min() >= 0
    assert warped['image'].max() <= 1


def test_examples_do_not_depend_on_their_neighbors_and_p_is_obeyed():
    order = np.array([3, 1, 2, 0, 7, 5, 6, 4])
    straight, mixed = (jax.tree.map(np.asarray, TRANSFORM(KEYS[rows], {name: value[rows] for name, value
                                                                       in BATCH.items()}))
                       for rows in (np.arange(8), order))
    for name in straight:
        np.testing.assert_allclose(mixed[name], straight[name][order], atol=1e-5)
    same = jax.jit(shape_warp(MODEL, p=0.))(KEYS, BATCH)
    for name in BATCH:
        np.testing.assert_array_equal(same[name], BATCH[name])


def test_coinciding_landmarks_leave_the_example_as_it_is():
    # Shapes without variance, two points of which are one: no spline takes it to two places.
    broken = MODEL._replace(mean=MODEL.mean.at[1].set(MODEL.mean[0]), variances=jnp.zeros(5))
    got = jax.jit(shape_warp(broken))(KEYS, BATCH)
    for name in BATCH:
        np.testing.assert_array_equal(got[name], BATCH[name])


def test_a_larger_training_set():
    few = spine_phantoms('train', num_examples=5, size=(48, 24), num_vertebrae=4)
    larger = warped_source(few, MODEL, copies=2, seed=1)
    images, targets, _ = gather(larger)
    assert len(images) == 15
    np.testing.assert_array_equal(images[:5], gather(few)[0])
    np.testing.assert_array_equal(targets['points'][:5], gather(few)[1]['points'])
    assert len(np.unique(targets['points'].reshape(15, -1), axis=0)) == 15
    assert '2 warped copies of each example, 5 modes' in larger.info.notes[-1]


def test_refusals():
    for options in ({'p': 1.5}, {'spread': -1.}):
        with pytest.raises(ValueError, match='shape_warp needs p'):
            shape_warp(MODEL, **options)
    with pytest.raises(ValueError, match='moves images with points and without boxes'):
        shape_warp(MODEL)(KEYS, {'image': BATCH['image']})
    with pytest.raises(ValueError, match='copies = 0'):
        warped_source(SOURCE, MODEL, copies=0)
