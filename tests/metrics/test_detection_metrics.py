"""Detection metrics: pycocotools' own numbers, average IoU by hand and by a loop, empty images, weights."""
import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from medrobust_jax.metrics.detection import best_overlaps, detection_metrics, match, precisions

NAMES = ('RBC', 'WBC', 'Platelets')


def scene(num_images=9, seed=0, noise=.02):
    """True boxes, and noisy copies of some of them among false ones; image 0 has no object."""
    generator = np.random.default_rng(seed)
    true = {'boxes': np.zeros((num_images, 6, 4)), 'box_labels': np.zeros((num_images, 6), int),
            'box_mask': np.zeros((num_images, 6), bool)}
    found = {'boxes': np.zeros((num_images, 12, 4)), 'scores': np.zeros((num_images, 12)),
             'classes': np.zeros((num_images, 12), int), 'valid': np.zeros((num_images, 12), bool)}
    for image in range(num_images):
        count = 0 if image == 0 else generator.integers(1, 7)
        low = generator.uniform(0, .7, (count, 2))
        true['boxes'][image, :count] = np.concatenate([low, low + generator.uniform(.1, .3, (count, 2))], 1)
        true['box_labels'][image, :count] = generator.integers(0, 3, count)
        true['box_mask'][image, :count] = True
        source = generator.integers(0, 6, 10)
        place = np.array([.1, .2, .4, .5])
        boxes = true['boxes'][image, source] + generator.normal(0, noise, (10, 4))
        false = ~true['box_mask'][image, source]
        boxes[false] = place + generator.normal(0, .02, (false.sum(), 4))
        swapped = generator.random(10) < .15
        found['boxes'][image, :10] = boxes
        found['classes'][image, :10] = np.where(swapped, 1, true['box_labels'][image, source])
        found['scores'][image, :10] = np.round(generator.random(10), 3)
        found['valid'][image, :10] = True
    return found, true


def by_pycocotools(found, true, repeats):
    """(AP, AP50) of images repeated as often as `repeats` says, the official way."""
    images = np.repeat(np.arange(len(repeats)), repeats)
    sides = []
    for boxes, labels, mask, scores in ((true['boxes'], true['box_labels'], true['box_mask'], None),
                                        (found['boxes'], found['classes'], found['valid'], found['scores'])):
        annotations = []
        for number, image in enumerate(images):
            for row in np.flatnonzero(mask[image]):
                x, y, right, bottom = boxes[image, row]
                annotations.append({'id': len(annotations) + 1, 'image_id': number, 'iscrowd': 0,
                                    'category_id': int(labels[image, row]), 'bbox': [x, y, right - x, bottom - y],
                                    'area': (right - x) * (bottom - y),
                                    **({} if scores is None else {'score': scores[image, row]})})
        side = COCO()
        side.dataset = {'images': [{'id': number} for number in range(len(images))], 'annotations': annotations,
                        'categories': [{'id': number} for number in range(3)]}
        sides.append(side)
    with contextlib.redirect_stdout(io.StringIO()):
        for side in sides:
            side.createIndex()
        evaluation = COCOeval(*sides, iouType='bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:2]


def test_average_precision_is_pycocotools_also_with_weights():
    found, true = scene()
    matches = match(found, true, 3)
    repeats = np.array([np.ones(9, int), [2, 0, 1, 3, 1, 1, 0, 2, 1]])
    expected = [by_pycocotools(found, true, row) for row in repeats]
    weights = repeats.astype(float)
    np.testing.assert_allclose(precisions(matches, weights), [row[0] for row in expected], atol=1e-9)
    np.testing.assert_allclose(precisions(matches, weights, overlaps=[0]), [row[1] for row in expected], atol=1e-9)
    got = detection_metrics(found, true, class_names=NAMES, num_resamples=50)
    assert got['map'].value == pytest.approx(expected[0][0], abs=1e-9)
    assert got['ap50'].value == pytest.approx(expected[0][1], abs=1e-9)
    assert 0 < expected[0][0] < expected[0][1] < 1
    assert got['ap50'].value == pytest.approx(np.mean([got[f'ap50/{name}'].value for name in NAMES]))
    for estimate in got.values():
        assert estimate.low <= estimate.value <= estimate.high


def test_average_iou_by_hand():
    true = {'boxes': np.array([[[0, 0, .2, .2], [.5, .5, .9, .9], [.5, .5, .9, .9]]]),
            'box_labels': np.array([[0, 0, 1]]), 'box_mask': np.ones((1, 3), bool)}
    boxes = [[0, 0, .2, .1], [0, 0, .2, .2], [.5, .5, .9, .8], [.1, 0, .3, .2], [0, .7, .1, .8]]
    found = {'boxes': np.array([boxes]),
             'scores': np.array([[.9, .8, .3, .95, .99]]), 'classes': np.array([[0, 0, 1, 1, 0]]),
             'valid': np.ones((1, 5), bool)}
    # Box 0 keeps the more confident of its two, though the other one fits better; the class-1 detection near it
    # and the one that overlaps nothing take none; box 1 has no detection of its class; box 2 has one.
    sums, counts = best_overlaps(found, true)
    np.testing.assert_allclose(sums, [.5 + 0 + .75])
    np.testing.assert_array_equal(counts, [3])


def test_average_iou_is_that_of_plain_loops():
    found, true = scene(seed=3, noise=.05)
    sums, counts = best_overlaps(found, true)
    for image in range(len(sums)):
        kept = {}
        for row in np.flatnonzero(found['valid'][image]):
            a = found['boxes'][image, row]
            candidates = {}
            for box in np.flatnonzero(true['box_mask'][image]):
                b = true['boxes'][image, box]
                inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
                sizes = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
                if true['box_labels'][image, box] == found['classes'][image, row] and inner > 0:
                    candidates[box] = inner / (sum(sizes) - inner)
            if candidates:
                box = max(candidates, key=candidates.get)
                if box not in kept or found['scores'][image, row] > kept[box][0]:
                    kept[box] = found['scores'][image, row], candidates[box]
        assert sums[image] == pytest.approx(sum(overlap for _, overlap in kept.values()))
        assert counts[image] == true['box_mask'][image].sum()


def test_perfect_detections_and_none():
    _, true = scene(5)
    perfect = {'boxes': true['boxes'], 'scores': true['box_mask'].astype(float), 'classes': true['box_labels'],
               'valid': true['box_mask']}
    got = detection_metrics(perfect, true, class_names=NAMES, num_resamples=20)
    for name in ('map', 'ap50', 'average_iou', 'recall', 'precision', 'recall/WBC'):
        assert got[name].value == pytest.approx(1)
    nothing = {**perfect, 'valid': np.zeros_like(true['box_mask'])}
    got = detection_metrics(nothing, true, class_names=NAMES, num_resamples=20)
    for name in ('map', 'ap50', 'average_iou', 'recall', 'detections_per_image'):
        assert got[name].value == 0


def test_images_without_objects_count_and_sets_without_are_undefined():
    found, true = scene()
    fewer = [{name: array[1:] for name, array in each.items()} for each in (found, true)]
    with_empty, without = (precisions(match(*pair, 3), np.ones(len(pair[1]['boxes'])), overlaps=[0])
                           for pair in ((found, true), fewer))
    assert with_empty < without  # what is detected on image 0 is wrong
    true['box_mask'][:] = False
    got = detection_metrics(found, true, class_names=NAMES, num_resamples=5)
    for name in ('map', 'average_iou', 'recall', 'ap50/RBC'):
        assert np.isnan(got[name].value)
        assert got[name].method == 'undefined (no boxes)'
    assert got['detections_per_image'].value == (found['scores'][found['valid']] > .25).sum() / 9
    assert got['precision'].value == 0


def test_decisions_are_judged_above_a_score():
    found, true = scene()
    confident = {**found, 'valid': found['valid'] & (found['scores'] > .6)}
    got = detection_metrics(found, true, class_names=NAMES, decision_score=.6, num_resamples=5)
    alone = detection_metrics(confident, true, class_names=NAMES, decision_score=0, num_resamples=5)
    for name in ('average_iou', 'recall', 'precision', 'detections_per_image', 'recall/WBC'):
        assert got[name].value == pytest.approx(alone[name].value)
    assert got['ap50'].value > alone['ap50'].value
    hits = sum((matches.right[0] & (matches.score > .6)).sum() for matches in match(found, true, 3))
    assert got['precision'].value == pytest.approx(hits / confident['valid'].sum())
    assert got['recall'].value == pytest.approx(hits / true['box_mask'].sum())
    nothing = detection_metrics(found, true, class_names=NAMES, decision_score=.9999, num_resamples=5)['precision']
    assert nothing.method == 'undefined (no detections)'


def test_refusals():
    found, true = scene(3)
    with pytest.raises(ValueError, match='detections of 3 images and boxes of 2'):
        detection_metrics(found, {name: array[:2] for name, array in true.items()}, class_names=NAMES)
    found['boxes'][1, 0, 0] = np.nan
    with pytest.raises(ValueError, match='those of row 1 are not'):
        detection_metrics(found, true, class_names=NAMES)
