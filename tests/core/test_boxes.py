"""Boxes: overlaps by hand and by brute force, degenerate ones, suppression against a plain loop."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from medrobust_jax.core import boxes as box_math

GENERATOR = np.random.default_rng(0)
# Zero width, inverted in x, inverted in both.
DEGENERATE = np.float32([[.3, .3, .3, .8], [.5, .2, .4, .9], [.6, .6, .2, .2]])


def random_boxes(count, generator=GENERATOR):
    corners = np.sort(generator.random((count, 2, 2)), axis=1)
    return corners.reshape(count, 4).astype(np.float32)


def overlap_by_cells(a, b, cells=200):
    """IoU by counting the cells of a grid."""
    x, y = np.meshgrid(*2 * [(np.arange(cells) + .5) / cells])
    inside = [(x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3]) for box in (a, b)]
    return (inside[0] & inside[1]).sum() / max((inside[0] | inside[1]).sum(), 1)


def test_overlaps_by_hand():
    a = jnp.array([0., 0, .2, .2])
    b = jnp.array([[.1, .1, .3, .3], [.2, 0, .4, .2], [.5, .5, .7, .7], [0., 0, .2, .2]])
    np.testing.assert_allclose(box_math.iou(a, b), [1 / 7, 0, 0, 1], rtol=1e-5)
    np.testing.assert_allclose(box_math.giou(a, b), [1 / 7 - 2 / 9, 0, -41 / 49, 1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(box_math.area(b), .04, rtol=1e-5)


def test_pairwise_overlaps_are_those_of_counted_cells():
    a, b = random_boxes(6), random_boxes(5)
    got = box_math.pairwise_iou(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(got, [[overlap_by_cells(p, q) for q in b] for p in a], atol=.02)
    stretched = [boxes * np.float32([3, .5, 3, .5]) for boxes in (a, b)]
    np.testing.assert_allclose(box_math.pairwise_iou(*stretched), got, rtol=1e-4, atol=1e-6)


def test_boxes_without_area_overlap_nothing_and_stay_finite():
    others = jnp.concatenate([random_boxes(4), DEGENERATE])
    np.testing.assert_array_equal(box_math.area(DEGENERATE), 0)
    np.testing.assert_array_equal(box_math.pairwise_iou(jnp.asarray(DEGENERATE), others), 0)
    for loss in (box_math.iou, box_math.giou):
        values, gradient = jax.value_and_grad(lambda b, loss=loss: loss(b[:, None], others[None]).sum())(
            jnp.asarray(DEGENERATE))
        assert np.isfinite(values)
        assert np.isfinite(gradient).all()
    assert (np.abs(box_math.giou(DEGENERATE[:, None], others[None])) <= 1).all()


def test_gradients_are_those_of_finite_differences_also_apart():
    with jax.enable_x64(True):
        a = jnp.array([[.1, .1, .5, .6], [.1, .1, .2, .2]], jnp.float64)
        b = jnp.array([[.2, .3, .7, .9], [.6, .5, .9, .8]], jnp.float64)
        check_grads(box_math.giou, (a, b), 1, ('rev',))
        gradient = jax.grad(lambda a: box_math.giou(a, b)[1])(a)[1]
        assert gradient[2] > 0  # stretching toward the other box raises it although they do not touch


def suppressed_by_a_loop(boxes, scores, classes, max_iou, min_score):
    kept = []
    for row in np.argsort(-scores, kind='stable'):
        clash = [other for other in kept if classes[other] == classes[row]
                 and float(box_math.iou(boxes[row], boxes[other])) > max_iou]
        if scores[row] > min_score and not clash:
            kept.append(row)
    return kept


@pytest.mark.parametrize('max_iou', [.2, .5, .9])
def test_suppression_is_the_greedy_one(max_iou):
    boxes = np.concatenate([random_boxes(30), random_boxes(10)])
    boxes = np.concatenate([boxes, boxes[:10] + np.float32(.01)])
    scores, classes = GENERATOR.random(50).astype(np.float32), GENERATOR.integers(0, 3, 50)
    expected = suppressed_by_a_loop(boxes, scores, classes, max_iou, .1)
    run = jax.jit(partial(box_math.suppress, num_outputs=60, max_iou=max_iou, min_score=.1))
    kept = run(boxes, scores, classes)
    assert kept.valid.sum() == len(expected)
    assert kept.boxes.shape == (60, 4)
    np.testing.assert_array_equal(kept.boxes[:len(expected)], boxes[expected])
    np.testing.assert_array_equal(kept.scores[:len(expected)], scores[expected])
    np.testing.assert_array_equal(kept.classes[:len(expected)], classes[expected])
    for field in kept[:3]:
        assert not np.asarray(field[len(expected):]).any()
    few = box_math.suppress(boxes, scores, classes, num_outputs=3, max_iou=max_iou, min_score=.1)
    np.testing.assert_array_equal(few.boxes, boxes[expected[:3]])


def test_suppression_of_nothing_and_of_nan():
    boxes, classes = jnp.asarray(random_boxes(4)), jnp.zeros(4, int)
    assert not box_math.suppress(boxes, jnp.zeros(4), classes, num_outputs=2).valid.any()
    kept = box_math.suppress(boxes, jnp.array([jnp.nan, .5, 0, 0]), classes, num_outputs=2)
    np.testing.assert_array_equal(kept.valid, [True, False])
    np.testing.assert_array_equal(kept.boxes[0], boxes[1])
