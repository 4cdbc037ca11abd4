"""Detection losses: values by a plain loop, perfect outputs, images without objects, gradients, neighbors."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core.anchors import assign, decode, flatten, points_of
from medrobust_jax.core.boxes import giou
from medrobust_jax.losses.detection import detection_divergence, detection_loss, detection_parts

SHAPES = ((8, 12), (4, 6))
LOSS = jax.jit(detection_loss)
GENERATOR = np.random.default_rng(0)
TARGETS = {'boxes': jnp.array([[[.1, .1, .3, .4], [.5, .2, .95, .9], [0, 0, 0, 0]],
                               [[.4, .4, .6, .6], [0, 0, 0, 0], [0, 0, 0, 0]],
                               [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]]),
           'box_labels': jnp.array([[1, 0, 0], [2, 0, 0], [0, 0, 0]]),
           'box_mask': jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)}


def random_maps(batch=3, scale=1., seed=0):
    generator = np.random.default_rng(seed)
    return tuple(jnp.asarray(generator.normal(scale=scale, size=(batch, *shape, 8)), jnp.float32)
                 for shape in SHAPES)


def inverse_softplus(values):
    return np.log(np.expm1(np.maximum(values, 1e-3)))


def perfect_maps():
    """Maps that say exactly what the targets are."""
    maps = [np.zeros((3, *shape, 8), np.float32) for shape in SHAPES]
    points, raw = points_of(maps), np.concatenate([each.reshape(3, -1, 8) for each in maps], axis=1)
    choose = jax.jit(partial(assign, points))
    raw[..., 0] = -12
    for image in range(3):
        chosen = jax.device_get(choose(TARGETS['boxes'][image], TARGETS['box_mask'][image]))
        for row in np.flatnonzero(chosen.positive):
            box = np.asarray(TARGETS['boxes'][image])[chosen.box[row]]
            sides = np.concatenate([points.centers[row] - box[:2], box[2:] - points.centers[row]])
            c = np.clip(np.asarray(chosen.centerness[row], float), 0, 1 - 1e-6)
            raw[image, row, 0] = np.log(c / (1 - c))
            raw[image, row, 1:5] = inverse_softplus(sides / np.tile(points.cells[row], 2))
            raw[image, row, 5 + int(TARGETS['box_labels'][image][chosen.box[row]])] = 20
    sizes = [shape[0] * shape[1] for shape in SHAPES]
    return tuple(jnp.asarray(part.reshape(3, *shape, 8))
                 for part, shape in zip(np.split(raw, np.cumsum(sizes)[:-1], axis=1), SHAPES, strict=True))


def test_parts_are_those_of_a_loop():
    maps = random_maps()
    parts, points = jax.jit(detection_parts)(maps, TARGETS), points_of(maps)
    raw = np.asarray(flatten(maps), np.float64)
    choose, truth_overlap = jax.jit(partial(assign, points)), jax.jit(giou)
    for image in range(3):
        chosen = jax.device_get(choose(TARGETS['boxes'][image], TARGETS['box_mask'][image]))
        boxes = decode(flatten(maps)[image, :, 1:5], points)
        box, classes, objectness = [], [], 0.
        for row in range(raw.shape[1]):
            o, c = 1 / (1 + np.exp(-raw[image, row, 0])), float(chosen.centerness[row])
            objectness += (c - o) ** 2 * -(c * np.log(o) + (1 - c) * np.log(1 - o))
            if chosen.positive[row]:
                number = int(chosen.box[row])
                box.append(1 - float(truth_overlap(boxes[row], TARGETS['boxes'][image, number])))
                logits = raw[image, row, 5:]
                label = int(TARGETS['box_labels'][image, number])
                classes.append(np.log(np.exp(logits).sum()) - logits[label])
        count = max(1, len(box))
        truth = [sum(box) / count, objectness / count, sum(classes) / count]
        np.testing.assert_allclose([part[image] for part in parts], truth, rtol=2e-5, atol=1e-6)
    total = detection_loss(maps, TARGETS, weights=(2., .5, 3.))
    np.testing.assert_allclose(total, 2 * parts.box + .5 * parts.objectness + 3 * parts.classes, rtol=1e-6)


def test_perfect_outputs_cost_almost_nothing_and_anything_else_more():
    parts = jax.jit(detection_parts)(perfect_maps(), TARGETS)
    np.testing.assert_allclose(np.asarray(parts), 0, atol=2e-3)
    assert (LOSS(random_maps(), TARGETS) > LOSS(perfect_maps(), TARGETS) + .1).all()


def test_an_image_without_objects_has_objectness_alone():
    parts = jax.jit(detection_parts)(random_maps(), TARGETS)
    assert parts.box[2] == parts.classes[2] == 0
    assert parts.objectness[2] > 0
    gradient = jax.grad(lambda maps: LOSS(maps, TARGETS)[2])(random_maps())
    assert all((level[..., 1:] == 0).all() and np.isfinite(level).all() for level in gradient)


@pytest.mark.parametrize('scale', [1., 30., 1e4])
def test_values_and_gradients_stay_finite_and_neighbors_do_not_matter(scale):
    maps = random_maps(scale=scale)
    value, gradient = jax.jit(jax.value_and_grad(lambda maps: detection_loss(maps, TARGETS).sum()))(maps)
    assert np.isfinite(value)
    assert all(np.isfinite(level).all() for level in gradient)
    own = {name: each[1:2] for name, each in TARGETS.items()}
    alone = LOSS(tuple(level[1:2] for level in maps), own)
    np.testing.assert_allclose(alone[0], LOSS(maps, TARGETS)[1], rtol=1e-5)


def test_padding_does_not_matter():
    bad = TARGETS['boxes'].at[1, 1].set(jnp.array([.6, .1, .2, .9])).at[1, 2].set(jnp.array([.1, .1, .9, .9]))
    unusable = {**TARGETS, 'boxes': bad, 'box_mask': TARGETS['box_mask'].at[1, 1].set(True)}  # inverted: ignored
    np.testing.assert_array_equal(LOSS(random_maps(), unusable), LOSS(random_maps(), TARGETS))


def test_gradient_goes_down_the_loss():
    maps = random_maps()
    value, gradient = jax.jit(jax.value_and_grad(lambda maps: detection_loss(maps, TARGETS).sum()))(maps)
    length = sum(float((level ** 2).sum()) for level in gradient)
    step = 1e-3
    moved = jax.tree.map(lambda level, slope: level - step * slope, maps, gradient)
    np.testing.assert_allclose(value - LOSS(moved, TARGETS).sum(), step * length, rtol=.02)


def test_divergence_is_zero_at_equality_and_positive_elsewhere():
    maps = random_maps()
    divergence = jax.jit(detection_divergence)
    np.testing.assert_allclose(divergence(maps, maps), 0, atol=1e-6)
    other = random_maps(seed=1)
    assert (divergence(maps, other) > .01).all()
    slopes = jax.jit(jax.grad(lambda a, b: detection_divergence(a, b).sum(), argnums=(0, 1)))
    for scale in (1., 1e4):
        gradient = slopes(maps, random_maps(scale=scale, seed=2))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    # One point alone: Bernoulli KL, and class and box terms weighted with the reference's objectness.
    one = tuple(jnp.full((1, 1, 1, 7), value) for value in (0.,))
    two = (one[0].at[..., 0].set(np.log(3)).at[..., 1].set(2.).at[..., 5].set(np.log(3)),)
    presence = .5 * np.log(.5 / .75) + .5 * np.log(.5 / .25)
    expected = presence + .5 * (presence + 4 / 4)  # n = max(1, .5)
    np.testing.assert_allclose(detection_divergence(one, two), expected, rtol=1e-5)
