"""Quality of detected boxes, in NumPy: average precision by pycocotools, overlap, recall, with intervals.

Detections and true boxes are dicts of padded arrays with leading axis N, as the detection task hands them:
'boxes' `[N, K, 4]`, 'scores' `[N, K]`, 'classes' `[N, K]`, 'valid' `[N, K]`, and 'boxes' `[N, M, 4]`,
'box_labels' `[N, M]`, 'box_mask' `[N, M]`. Images without objects count: what is detected there is wrong.

Contents: `best_overlaps` (what average IoU is made of), `match` (pycocotools' matching), `Matches`,
`precisions` (weighted average precision), `detection_metrics`.

Example:

    estimates = detection_metrics(detections, targets, class_names=('RBC', 'WBC', 'Platelets'))
    estimates['ap50'].value, estimates['average_iou'].low
"""
import contextlib
import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from medrobust_jax.metrics.intervals import Estimate, bootstrap

Detections = Mapping[str, Any]
_RECALLS = np.linspace(0, 1, 101)  # the recalls at which pycocotools reads the precision
IOUS = np.linspace(.5, .95, 10)  # COCO's thresholds


class Matches(NamedTuple):
    """Which detections of one class found a box, over all images.

    Attributes:
      image: `[D]` int, the image of a detection.
      score: `[D]`.
      right: `[10, D]` bool, whether it found a box, at each overlap in `IOUS`.
      num_true: `[N]`, the class's boxes in each image.
    """

    image: np.ndarray
    score: np.ndarray
    right: np.ndarray
    num_true: np.ndarray


def best_overlaps(detections: Detections, targets: Detections) -> tuple[np.ndarray, np.ndarray]:
    """The overlap of every true box with the detection that it is given, summed per image.

    Each detection takes the box of its own class that it overlaps most; a box keeps the most confident of
    its detections (the first among equals); boxes without one have overlap 0. A detection that overlaps no box
    of its class takes none.

    Returns:
      `(sums [N], counts [N])` over an image's boxes; average IoU is `sums.sum() / counts.sum()`.

    References: the avIoU of general adversarial training for detection, arXiv 2206.01736.
    """
    sums, counts = [], []
    for found, true in zip(_images(detections, ('boxes', 'scores', 'classes'), 'valid'),
                           _images(targets, ('boxes', 'box_labels'), 'box_mask'), strict=True):
        counts.append(len(true[0]))
        kept: dict[int, float] = {}
        if len(true[0]) and len(found[0]):
            overlaps = _pairwise_iou(found[0], true[0]) * (found[2][:, None] == true[1][None])
            for row in np.argsort(-found[1], kind='stable'):
                box = int(overlaps[row].argmax())
                if overlaps[row, box] > 0:
                    kept.setdefault(box, float(overlaps[row, box]))
        sums.append(sum(kept.values()))
    return np.asarray(sums, float), np.asarray(counts, float)


def match(detections: Detections, targets: Detections, num_classes: int) -> list[Matches]:
    """pycocotools' matching of detections to boxes, for each class."""
    true, found, num_images = [], [], len(targets['boxes'])
    for image, (boxes, labels) in enumerate(_images(targets, ('boxes', 'box_labels'), 'box_mask')):
        true += [_annotation(len(true) + row + 1, image, boxes[row], labels[row]) for row in range(len(boxes))]
    for image, (boxes, scores, classes) in enumerate(
            _images(detections, ('boxes', 'scores', 'classes'), 'valid')):
        found += [{**_annotation(len(found) + row + 1, image, boxes[row], classes[row]),
                   'score': float(scores[row])} for row in range(len(boxes))]
    evaluation = _evaluate(true, found, num_images, num_classes, detections['boxes'].shape[1])
    matches = []
    for number in range(num_classes):
        images = evaluation.evalImgs[number * num_images:(number + 1) * num_images]
        parts = [(image, part) for image, part in enumerate(images) if part is not None]
        num_true = np.asarray([0. if part is None else len(part['gtIds']) for part in images])
        matches.append(Matches(
            np.concatenate([np.full(len(part['dtScores']), image) for image, part in parts] or [[]]).astype(int),
            np.concatenate([part['dtScores'] for _, part in parts] or [[]]),
            np.concatenate([np.zeros((10, 0), bool), *(part['dtMatches'] > 0 for _, part in parts)], axis=1),
            num_true))
    return matches


def precisions(matches: Sequence[Matches], weights: np.ndarray, *, overlaps: Sequence[int] = range(10)) -> Any:
    """Average precision, mean over classes and overlaps; 101-point interpolation as in pycocotools.

    Args:
      matches: one per class; a class without boxes is left out of the mean.
      weights: [..., N] >= 0, how often each image counts.
      overlaps: which of `IOUS`; `[0]` for AP50.

    Returns:
      [...] in [0, 1]; NaN where there are no boxes, or where the weights leave a class none.
    """
    used = [of_class for of_class in matches if of_class.num_true.sum() > 0]
    values = [_average_precision(of_class, weights, number) for of_class in used for number in overlaps]
    return np.mean(values, axis=0) if values else np.full(weights.shape[:-1], np.nan)


def detection_metrics(detections: Detections, targets: Detections, groups: ArrayLike | None = None, *,
                      class_names: Sequence[str], decision_score: float = .25,
                      num_resamples: int = 400) -> dict[str, Estimate]:
    """All that detections tell, with 95 % intervals that resample images, or patients.

    Average precision is over all thresholds of the score and takes all detections. Everything else judges what
    a user would be shown, the detections whose score is above `decision_score`.

    Args:
      detections: 'boxes', 'scores', 'classes', 'valid'.
      targets: 'boxes', 'box_labels', 'box_mask'.
      groups: [N] patient ids, resampled as wholes, or None.
      class_names: one per class.
      decision_score: in [0, 1); .25 [ours, a customary setting of detectors].
      num_resamples: of the bootstrap.

    Returns:
      Name to estimate: 'map' (COCO's mean over overlaps .5 to .95 and classes), 'ap50', 'average_iou'
      (`best_overlaps`), 'recall' (share of the boxes that are found at overlap .5), 'precision' (share of the
      detections that find one), 'detections_per_image', 'ap50/<class>' and 'recall/<class>'. NaN, with the
      reason in `method`, where there are no boxes (for precision: no detections).

    Raises:
      ValueError: unequal numbers of images, or a detection that is not finite.
    """
    _check(detections, targets)
    matches = match(detections, targets, len(class_names))
    rows = np.arange(len(targets['boxes']))
    draw = partial(bootstrap, groups=groups, weighted=True, num_resamples=num_resamples)

    def precision(of_classes: Sequence[Matches], overlaps: Sequence[int]) -> Estimate:
        def statistic(chosen: np.ndarray, weights: np.ndarray | None = None) -> Any:
            return precisions(of_classes, np.ones(len(chosen)) if weights is None else weights, overlaps=overlaps)
        return draw(statistic, (rows,))

    confident = np.asarray(detections['scores']) > decision_score
    shown = {**detections, 'valid': np.asarray(detections['valid']) & confident}
    num_true = np.stack([each.num_true for each in matches])
    num_found = np.stack([_found(each, decision_score, len(rows)) for each in matches])
    num_shown = shown['valid'].sum(axis=1).astype(float)
    result = {'map': precision(matches, range(10)), 'ap50': precision(matches, [0]),
              'average_iou': draw(_ratio, best_overlaps(shown, targets)),
              'recall': draw(_ratio, (num_found.sum(0), num_true.sum(0))),
              'precision': draw(_ratio, (num_found.sum(0), num_shown)),
              'detections_per_image': draw(_ratio, (num_shown, np.ones(len(rows))))}
    for number, name in enumerate(class_names):
        result[f'ap50/{name}'] = precision(matches[number:number + 1], [0])
        result[f'recall/{name}'] = draw(_ratio, (num_found[number], num_true[number]))
    return {name: each._replace(method=f"undefined (no {'detections' if name == 'precision' else 'boxes'})")
            if np.isnan(each.value) else each for name, each in result.items()}


def _found(matches: Matches, decision_score: float, num_images: int) -> np.ndarray:
    """How many boxes of each image were found at overlap .5 by detections above a score, `[N]`.

    Detections are matched by falling score, so those below do not change what those above find.
    """
    chosen = matches.right[0] & (matches.score > decision_score)
    return np.bincount(matches.image[chosen], minlength=num_images).astype(float)


def _average_precision(matches: Matches, weights: np.ndarray, overlap: int) -> np.ndarray:
    order = np.argsort(-matches.score, kind='mergesort')
    weight = weights[..., matches.image[order]]
    right = matches.right[overlap, order]
    hits, all_found = (weight * right).cumsum(-1), weight.cumsum(-1)
    num_true = weights @ matches.num_true
    precision = hits / (all_found + np.spacing(1))
    # The best precision at this recall or more.
    precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    safe = np.where(num_true > 0, num_true, 1)
    recall = hits / safe[..., None]
    total = np.zeros(weights.shape[:-1])
    for flat in np.ndindex(total.shape):
        first = np.searchsorted(recall[flat], _RECALLS, side='left')
        reached = first < recall.shape[-1]
        total[flat] = precision[flat][first[reached]].sum() / len(_RECALLS)
    return np.where(num_true > 0, total, np.nan)[()]


def _evaluate(true: list[dict], found: list[dict], num_images: int, num_classes: int,
              max_detections: int) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it is doing
        sides = []
        for annotations in (true, found):
            side: Any = COCO()
            side.dataset = {'images': [{'id': image} for image in range(num_images)], 'annotations': annotations,
                            'categories': [{'id': number} for number in range(num_classes)]}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType='bbox')
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ['all']
        evaluation.params.maxDets = [max_detections]
        evaluation.params.iouThrs = IOUS
        evaluation.evaluate()
    return evaluation


def _annotation(number: int, image: int, box: np.ndarray, label: int) -> dict[str, Any]:
    x, y, right, bottom = (float(side) for side in box)
    width, height = right - x, bottom - y
    return {'id': number, 'image_id': image, 'category_id': int(label), 'bbox': [x, y, width, height],
            'area': width * height, 'iscrowd': 0}


def _images(values: Detections, names: Sequence[str], mask: str) -> list[list[np.ndarray]]:
    """Per image the rows that are not padding, of each named array."""
    kept = np.asarray(values[mask], bool)
    arrays = [np.asarray(values[name]) for name in names]
    return [[array[image][kept[image]] for array in arrays] for image in range(len(kept))]


def _pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    a, b = first[:, None].astype(float), second[None].astype(float)
    inner = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    sizes = [np.clip(each[..., 2:] - each[..., :2], 0, None).prod(-1) for each in (a, b)]
    union = sizes[0] + sizes[1] - inner
    return np.where((sizes[0] > 0) & (sizes[1] > 0), inner / np.where(union > 0, union, 1), 0)


def _ratio(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray | None = None) -> Any:
    w = np.ones(len(sums)) if weights is None else weights
    below = w @ counts
    return np.where(below > 0, w @ sums / np.where(below > 0, below, 1), np.nan)[()]


def _check(detections: Detections, targets: Detections) -> None:
    if len(detections['boxes']) != len(targets['boxes']):
        raise ValueError(f"detections of {len(detections['boxes'])} images and boxes of {len(targets['boxes'])}")
    finite = np.isfinite(np.asarray(detections['boxes'])).all((1, 2)) & np.isfinite(detections['scores']).all(1)
    if not finite.all():
        raise ValueError(f'detections must be finite; those of row {int(np.argmin(finite))} are not')
