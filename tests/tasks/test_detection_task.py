"""The detection task: criterion, calibration, decisions of a fixed shape, metrics, refusals."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.apgd import apgd
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.stabilized import smia
from medrobust_jax.core import rng
from medrobust_jax.core.anchors import points_of
from medrobust_jax.core.types import Victim
from medrobust_jax.tasks.detection import detection

SHAPES = ((8, 8), (4, 4))
TASK = detection(2, class_names=('cell', 'platelet'), max_detections=6)
PREDICT = jax.jit(TASK.predict)
BOXES = np.float32([[[.1, .1, .35, .35], [.5, .5, .95, .9]], [[.3, .6, .5, .8], [0, 0, 0, 0]]])
TARGETS = {'boxes': BOXES, 'box_labels': np.int32([[0, 1], [1, 0]]),
           'box_mask': np.array([[True, True], [True, False]])}


def maps_that_say(boxes, labels, mask, strength=6.):
    """Maps in which the point nearest to every box's center detects it."""
    maps = [np.zeros((len(boxes), *shape, 7), np.float32) for shape in SHAPES]
    points = points_of(maps)
    raw = np.zeros((len(boxes), len(points.levels), 7), np.float32)
    raw[..., 0] = -9
    for image, box in np.argwhere(mask):
        corners = boxes[image, box]
        distance = ((points.centers - (corners[:2] + corners[2:]) / 2) ** 2).sum(1) + (points.levels == 1)
        row = int(distance.argmin())
        sides = np.concatenate([points.centers[row] - corners[:2], corners[2:] - points.centers[row]])
        raw[image, row, 0] = strength
        raw[image, row, 1:5] = np.log(np.expm1(sides / np.tile(points.cells[row], 2)))
        raw[image, row, 5 + labels[image, box]] = strength
    first = raw[:, :64].reshape(-1, 8, 8, 7)
    return jnp.asarray(first), jnp.asarray(raw[:, 64:].reshape(-1, 4, 4, 7))


MAPS = maps_that_say(BOXES, TARGETS['box_labels'], TARGETS['box_mask'])


def test_decisions_are_the_boxes_that_the_maps_say():
    found = PREDICT(MAPS)
    assert {name: each.shape for name, each in found.items()} == {
        'boxes': (2, 6, 4), 'scores': (2, 6), 'classes': (2, 6), 'valid': (2, 6)}
    np.testing.assert_array_equal(found['valid'].sum(1), [2, 1])
    for image, count in ((0, 2), (1, 1)):
        order = np.lexsort(np.asarray(found['boxes'][image, :count]).T)
        np.testing.assert_allclose(found['boxes'][image, :count][order], BOXES[image, :count][
            np.lexsort(BOXES[image, :count].T)], atol=1e-5)
    np.testing.assert_array_equal(found['classes'][1, 0], 1)
    alone = PREDICT(tuple(level[1:] for level in MAPS))
    np.testing.assert_allclose(alone['boxes'][0], found['boxes'][1], atol=1e-6)


def test_nan_detects_nothing_and_is_never_acceptable():
    poisoned = (MAPS[0].at[0, 2, 2, 3].set(jnp.nan), MAPS[1].at[1, 0, 0, 0].set(jnp.inf))
    found = PREDICT(poisoned)
    assert all(np.isfinite(each).all() for each in found.values())
    generous = detection(2, threshold=(-1e9, -1e9, -1e9))
    acceptable = jax.jit(generous.acceptable)
    assert acceptable(MAPS, TARGETS).all()
    assert not acceptable(poisoned, TARGETS).any()


def test_criterion_is_three_losses_against_three_thresholds():
    quality = np.asarray(jax.jit(TASK.quality)(MAPS, TARGETS))
    assert quality.shape == (2, 3)
    assert (quality <= 0).all()
    threshold = TASK.threshold_of(quality)
    assert threshold == pytest.approx(tuple(quality.mean(0)))
    at_mean = detection(2, threshold=threshold)
    np.testing.assert_array_equal(jax.jit(at_mean.acceptable)(MAPS, TARGETS),
                                  (quality >= np.float32(threshold)).all(1))
    for part in range(3):  # each one alone can fail an output
        strict = np.full(3, -1e9)
        strict[part] = quality[:, part].mean()
        expected = quality[:, part] >= np.float32(strict[part])
        got = jax.jit(detection(2, threshold=tuple(strict)).acceptable)(MAPS, TARGETS)
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(jax.jit(TASK.loss)(MAPS, TARGETS), -quality.sum(1), rtol=1e-6)


def test_metrics_of_outputs_equal_those_of_decisions():
    scores = TASK.metrics(jax.device_get(MAPS), TARGETS, None)
    verdicts = TASK.verdict_metrics(jax.device_get(PREDICT(MAPS)), TARGETS, None)
    assert scores['average_iou'].value == pytest.approx(1, abs=1e-4)
    assert scores['ap50'].value == pytest.approx(1)
    for name, each in scores.items():
        assert each == verdicts[name]
    assert 'ap50/platelet' in scores
    patients = TASK.metrics(jax.device_get(MAPS), TARGETS, np.array(['a', 'b']))
    assert patients['ap50'].value == pytest.approx(1)


def test_targets_and_refusals():
    assert TASK.num_outputs == 7
    batch = {**TARGETS, 'image': None, 'mask': None}
    assert set(TASK.targets(batch)) == {'boxes', 'box_labels', 'box_mask'}
    TASK.check_targets(TARGETS)
    for box, problem in (([.5, .5, .5, .7], 'zero area'), ([.6, .5, .4, .7], 'inverted'),
                         ([1.1, .1, 1.3, .2], 'outside'), ([.1, .1, np.nan, .2], 'not finite')):
        boxes = BOXES.copy()
        boxes[1, 0] = box
        with pytest.raises(ValueError, match=f'row 1 holds a box .*{problem}'):
            TASK.check_targets({**TARGETS, 'boxes': boxes})
    with pytest.raises(ValueError, match=r'row 0 holds a label outside 0\.\.1: box 1'):
        TASK.check_targets({**TARGETS, 'box_labels': np.int32([[0, 2], [0, 0]])})
    with pytest.raises(ValueError, match="takes a dict of 'boxes'"):
        TASK.check_targets(np.zeros(3))
    with pytest.raises(ValueError, match="takes a dict of 'boxes'"):
        TASK.check_targets({**TARGETS, 'box_mask': np.ones(2)})
    for options in ({'num_classes': 0}, {'threshold': (-1.,)}, {'class_names': ('a',)}, {'max_detections': 0},
                    {'min_score': 1.}):
        with pytest.raises(ValueError, match='detection needs'):
            detection(**{'num_classes': 2, **options})


@pytest.mark.parametrize(('attack', 'norm', 'eps'), [
    (pgd(num_steps=8), 'linf', .1), (smia(num_steps=8, stabilization='squared_error'), 'linf', .1),
    (apgd(num_steps=8, norm='l2', loss='task'), 'l2', 1.5)], ids=['pgd', 'smia', 'apgd'])
def test_attacks_raise_the_loss_of_a_small_detector(attack, norm, eps):
    weights = [np.random.default_rng(level).normal(size=(stride * stride, 7)).astype(np.float32) * 2 / stride
               for level, stride in enumerate((4, 8))]

    def forward(images, keys):
        del keys
        return tuple(patches(images, stride) @ weight for stride, weight in zip((4, 8), weights, strict=True))

    def patches(images, stride):
        count = 32 // stride
        cut = images.reshape(-1, count, stride, count, stride).transpose(0, 1, 3, 2, 4)
        return cut.reshape(-1, count, count, stride * stride)

    images = jnp.asarray(np.random.default_rng(5).random((2, 32, 32, 1)), jnp.float32)
    targets = jax.tree.map(jnp.asarray, TARGETS)
    loss = jax.jit(lambda images: TASK.loss(forward(images, None), targets))
    victim = Victim(forward, TASK.loss, detection(2, threshold=(-1e9, -1e9, -1e9)).acceptable)
    result = jax.jit(partial(run, attack, victim, eps=eps))(rng.example_keys(0, jnp.arange(2)), images, targets)
    assert (result.loss > 1.1 * loss(images)).all()
    np.testing.assert_allclose(result.loss, loss(result.images), rtol=1e-4)
    moved = np.asarray(result.images - images).reshape(2, -1)
    size = np.abs(moved).max(1) if norm == 'linf' else np.linalg.norm(moved, axis=1)
    assert (size <= eps * 1.001).all()
