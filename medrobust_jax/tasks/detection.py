"""Object detection: boxes with classes, by a one-stage anchor-free detector.

Contents: `detection`, `predict_boxes`, `check_boxes`.

Example:

    task = detection(num_classes=3, class_names=('RBC', 'WBC', 'Platelets'))
    losses = task.loss(maps, {'boxes': boxes, 'box_labels': labels, 'box_mask': mask})       # [B]
    found = task.predict(maps)                 # 'boxes' [B, K, 4], 'scores', 'classes', 'valid' [B, K]
"""
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core import boxes as box_math
from medrobust_jax.core.anchors import NUM_BOX_CHANNELS, decode, flatten, points_of
from medrobust_jax.core.types import Array, Outputs, Targets, Task
from medrobust_jax.losses.detection import detection_divergence, detection_loss, detection_parts
from medrobust_jax.metrics.detection import detection_metrics

TARGETS = ('boxes', 'box_labels', 'box_mask')


def detection(num_classes: int, *, threshold: Sequence[float] = (-.5, -.15, -.1),
              weights: Sequence[float] = (1., 1., 1.), class_names: Sequence[str] | None = None,
              max_detections: int = 100, min_score: float = .05, decision_score: float = .25,
              max_iou: float = .45) -> Task:
    """The task of finding the objects of `num_classes` classes.

    Outputs are maps `[B, h, w, 5 + num_classes]`, one per pyramid level (`core.anchors`); targets a dict of
    'boxes', 'box_labels' and 'box_mask'. Loss: the weighted sum of box, objectness and class loss. Quality:
    minus each of these three, `[B, 3]`; criterion: each is at least its threshold. `threshold_of` is their mean
    over the clean images of a clean-trained model, so that an output is acceptable where none of its three
    losses is above the clean average (the criterion of general adversarial training, arXiv 2206.01736). An
    image without objects has box and class loss 0: there objectness alone decides.

    Args:
      num_classes: >= 1.
      threshold: of minus the box, objectness and class loss. The default, for use without calibration, asks for
        a mean GIoU of .5, and for losses about twice and six times those of a detector trained on BCCD [ours].
      weights: of the three losses in their sum; 1 each [ours].
      class_names: for the names of metrics; None numbers the classes.
      max_detections: K, how many boxes a decision holds.
      min_score: detections of this score or less are none; low, so that average precision sees the whole curve.
      decision_score: what a user is shown is above it; metrics other than average precision judge that.
      max_iou: largest overlap of two detections of a class; .45 [ours, a customary setting].

    Raises:
      ValueError: for values out of range.
    """
    names = [str(number) for number in range(num_classes)] if class_names is None else list(class_names)
    if num_classes < 1 or len(names) != num_classes or len(threshold) != 3 or len(weights) != 3:
        raise ValueError('detection needs num_classes >= 1 with as many names, three thresholds and three '
                         f'weights, not {num_classes}, {len(names)}, {threshold} and {weights}')
    if max_detections < 1 or not 0 <= min_score <= decision_score < 1 or not 0 <= max_iou <= 1:
        raise ValueError('detection needs max_detections >= 1, 0 <= min_score <= decision_score < 1, max_iou in '
                         f'[0, 1], not {max_detections}, {min_score}, {decision_score} and {max_iou}')
    predict = partial(predict_boxes, max_detections=max_detections, min_score=min_score, max_iou=max_iou)

    def quality(outputs: Outputs, targets: Targets) -> Array:
        return -jnp.stack(detection_parts(outputs, targets), axis=-1)

    def acceptable(outputs: Outputs, targets: Targets) -> Array:
        good_enough = jnp.all(quality(outputs, targets) >= jnp.asarray(threshold), axis=-1)
        return good_enough & jnp.isfinite(flatten(outputs)).all(axis=(1, 2))

    def verdict_metrics(predictions: Outputs, targets: Targets, groups: np.ndarray | None = None) -> dict:
        return detection_metrics(predictions, targets, groups, class_names=names, decision_score=decision_score)

    def metrics(outputs: Outputs, targets: Targets, groups: np.ndarray | None = None) -> dict:
        return verdict_metrics(jax.device_get(_in_chunks(predict, outputs)), targets, groups)

    first, second, third = (float(weight) for weight in weights)
    return Task(name='detection', num_outputs=NUM_BOX_CHANNELS + num_classes, target_names=TARGETS,
                targets=lambda batch: {name: batch[name] for name in TARGETS},
                loss=partial(detection_loss, weights=(first, second, third)), acceptable=acceptable,
                divergence=detection_divergence, predict=predict, metrics=metrics,
                verdict_metrics=verdict_metrics, check_targets=partial(check_boxes, num_classes=num_classes),
                quality=quality, threshold_of=lambda values: tuple(float(v) for v in np.mean(values, axis=0)))


def predict_boxes(outputs: Outputs, *, max_detections: int = 100, min_score: float = .05,
                  max_iou: float = .45) -> Outputs:
    """The detections of every image, best first, clipped to the image; jit-able.

    A point's class is its most probable one; its score sigmoid(objectness) times that class's probability.

    Returns:
      'boxes' `[B, K, 4]` in fractions, 'scores' `[B, K]`, 'classes' `[B, K]` int32 and 'valid' `[B, K]` bool;
      zeros where not valid. A point whose outputs are not finite detects nothing.
    """
    raw, points = flatten(outputs), points_of(outputs)
    finite = jnp.isfinite(raw).all(axis=-1)
    raw = jnp.where(finite[..., None], raw, 0)
    probabilities = jax.nn.softmax(raw[..., NUM_BOX_CHANNELS:], axis=-1)
    scores = jnp.where(finite, jax.nn.sigmoid(raw[..., 0]) * probabilities.max(axis=-1), 0)
    suppress = partial(box_math.suppress, num_outputs=max_detections, max_iou=max_iou, min_score=min_score)
    boxes = box_math.clip(decode(raw[..., 1:NUM_BOX_CHANNELS], points))
    return jax.vmap(suppress)(boxes, scores, probabilities.argmax(axis=-1))._asdict()


def check_boxes(targets: Targets, num_classes: int) -> None:
    """Raises ValueError, with the row, unless targets are boxes that a detector can be judged by.

    Boxes must be finite, of positive width and height and at least in part inside the image, labels in
    0..num_classes-1; padding (mask False) may hold anything finite.
    """
    arrays = {name: np.asarray(targets[name]) for name in TARGETS} if isinstance(targets, Mapping) else {}
    shape = arrays['boxes'].shape if arrays else None
    if shape is None or len(shape) != 3 or shape[2] != 4 or any(
            arrays[name].shape != shape[:2] for name in TARGETS[1:]):
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError("detection takes a dict of 'boxes' [batch, boxes, 4], 'box_labels' and 'box_mask' "
                         f'[batch, boxes], not {shapes}')
    boxes, labels, mask = arrays['boxes'], arrays['box_labels'], arrays['box_mask'].astype(bool)
    problems = {
        'holds a box that is not finite': ~np.isfinite(boxes).all(-1),
        'holds a box of zero area, or an inverted one': mask & (boxes[..., 2:] <= boxes[..., :2]).any(-1),
        'holds a box outside of the image': mask & ((boxes[..., 2:] <= 0) | (boxes[..., :2] >= 1)).any(-1),
        f'holds a label outside 0..{num_classes - 1}': mask & ((labels < 0) | (labels >= num_classes))}
    for problem, bad in problems.items():
        if bad.any():
            row, box = (int(index) for index in np.argwhere(bad)[0])
            raise ValueError(f'row {row} {problem}: box {box}, {boxes[row, box]}, label {labels[row, box]} '
                             f'({int(bad.any(1).sum())} such rows)')


def _in_chunks(predict: Callable[[Outputs], Outputs], outputs: Outputs, size: int = 256) -> dict[str, np.ndarray]:
    """`predict` on gathered outputs, a few images at a time."""
    compiled, count = jax.jit(predict), len(outputs[0])
    parts = [compiled(tuple(level[start:start + size] for level in outputs)) for start in range(0, count, size)]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
