"""Points and assignment: geometry by hand, every box is looked for, padding and bad boxes are not."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core.anchors import assign, decode, flatten, points_of

MAPS = [jnp.zeros((1, 16, 32, 6)), jnp.zeros((1, 8, 16, 6)), jnp.zeros((1, 4, 8, 6))]
POINTS = points_of(MAPS)


def test_points_are_cell_centers_level_by_level():
    assert POINTS.centers.shape == (16 * 32 + 8 * 16 + 4 * 8, 2)
    np.testing.assert_allclose(POINTS.centers[0], [.5 / 32, .5 / 16])
    np.testing.assert_allclose(POINTS.centers[1], [1.5 / 32, .5 / 16])
    np.testing.assert_allclose(POINTS.centers[16 * 32], [.5 / 16, .5 / 8])
    np.testing.assert_allclose(POINTS.cells[-1], [1 / 8, 1 / 4])
    np.testing.assert_array_equal(np.bincount(POINTS.levels), [512, 128, 32])
    raw = flatten([jnp.full_like(level, number) for number, level in enumerate(MAPS)])
    np.testing.assert_array_equal(raw[0, :, 0], POINTS.levels)
    with pytest.raises(ValueError, match='5 \\+ num_classes output channels, not 5'):
        flatten([jnp.zeros((1, 4, 4, 5))])


def test_decoded_boxes_are_distances_in_cells():
    one = np.log(np.e - 1)  # softplus of it is 1
    boxes = decode(jnp.full((len(POINTS.levels), 4), one), POINTS)
    np.testing.assert_allclose(boxes[0], [-.5 / 32, -.5 / 16, 1.5 / 32, 1.5 / 16], rtol=1e-4)
    wild = decode(jnp.array([[-1e30, 0, 1e4, 50.]] * len(POINTS.levels)), POINTS)
    assert np.isfinite(wild).all()
    assert (wild[:, 2:] >= wild[:, :2]).all()


def test_assignment_by_hand():
    # 4 x 4 cells of the finest level, around cell borders: the 2 x 2 points next to the center, and one ring more
    # as far as 1.5 cells reach.
    boxes = jnp.array([[8 / 32, 4 / 16, 12 / 32, 8 / 16], [0, 0, 1, 1], [.5, .5, .5, .7]])
    chosen = jax.jit(partial(assign, POINTS))(boxes, jnp.array([True, True, True]))
    finest = np.asarray(chosen.positive[:512]).reshape(16, 32)
    expected = np.zeros((16, 32), bool)
    expected[4:8, 8:12] = True
    np.testing.assert_array_equal(finest, expected)
    np.testing.assert_array_equal(chosen.box[:512][expected.ravel()], 0)
    assert not chosen.positive[512:640].any()
    coarsest = np.asarray(chosen.positive[640:]).reshape(4, 8)  # the box of the whole image: coarsest level
    expected = np.zeros((4, 8), bool)
    expected[:, 2:6] = True
    np.testing.assert_array_equal(coarsest, expected)
    assert set(np.asarray(chosen.box)[np.asarray(chosen.positive)]) == {0, 1}  # the one without area is nobody's
    inner = chosen.centerness.reshape(-1)[5 * 32 + 9]
    np.testing.assert_allclose(inner, 1.5 / 2.5, rtol=1e-5)  # (1.5, 2.5) cells to either side in x and in y
    assert (np.asarray(chosen.centerness)[~np.asarray(chosen.positive)] == 0).all()


def test_every_box_is_looked_for_and_the_nearest_center_wins():
    generator = np.random.default_rng(1)
    for _ in range(30):
        center, sides = generator.uniform(.02, .98, 2), generator.uniform(.005, .9, 2)
        box = np.clip(np.concatenate([center - sides / 2, center + sides / 2]), 0, 1)
        chosen = assign(POINTS, jnp.asarray(box[None], jnp.float32), jnp.array([True]))
        assert chosen.positive.any()
        assert len(set(POINTS.levels[np.asarray(chosen.positive)])) == 1
    pair = jnp.array([[.25, .25, .37, .5], [.28, .25, .40, .5]])
    chosen = assign(POINTS, pair, jnp.array([True, True]))
    x = POINTS.centers[:, 0][np.asarray(chosen.positive)]
    np.testing.assert_array_equal(np.asarray(chosen.box)[np.asarray(chosen.positive)], (x > .325).astype(int))


@pytest.mark.parametrize('bad', [[.5, .5, .5, .7], [.6, .5, .4, .7], [1.2, .1, 1.4, .3], [0, 0, 0, 0]])
def test_padding_and_unusable_boxes_are_nobodys(bad):
    alone = assign(POINTS, jnp.array([bad], jnp.float32), jnp.array([True]))
    assert not alone.positive.any()
    masked = assign(POINTS, jnp.array([[.1, .1, .5, .5]]), jnp.array([False]))
    assert not masked.positive.any()
    assert np.isfinite(alone.centerness).all()
    both = assign(POINTS, jnp.array([[.1, .1, .5, .5], bad], jnp.float32), jnp.array([True, True]))
    one = assign(POINTS, jnp.array([[.1, .1, .5, .5]], jnp.float32), jnp.array([True]))
    np.testing.assert_array_equal(both.positive, one.positive)
