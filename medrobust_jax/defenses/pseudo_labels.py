"""Targets for unlabeled images: what a network decides about them.

Contents: `pseudo_targets`, `unlabeled_batch`.

Example:

    pool = unlabeled_batch(task, batch, helper(batch['unlabeled']))     # a batch like any other
    losses = task.loss(outputs, task.targets(pool))
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Batch, Outputs, Targets, Task

DECISION_SCORE = 0.25  # detections above it count as objects: the default of `tasks.detection`


def pseudo_targets(task: Task, outputs: Outputs) -> Targets:
    """What the outputs decide (the class, the grade, the label map, the points, the boxes), as targets.

    A constant to gradients. Of detections those with a score above `DECISION_SCORE`.
    """
    decision = jax.lax.stop_gradient(task.predict(outputs))
    if task.name == 'shape':
        decision = {'points': decision['points'], 'segmentation': decision['mask']}
    if task.name == 'detection':
        decision = {'boxes': decision['boxes'], 'box_labels': decision['classes'],
                    'box_mask': decision['valid'] & (decision['scores'] > DECISION_SCORE)}
    return jax.tree.map(lambda leaf: leaf.astype(jnp.int32) if leaf.dtype == jnp.uint8 else leaf, decision)


def unlabeled_batch(task: Task, batch: Batch, outputs: Outputs) -> dict:
    """The batch's unlabeled images in the place of its images, with what `outputs` [B, ...] decide as targets.

    'mask' and 'index' remain those of the labeled rows beside which the images travel.
    """
    targets = pseudo_targets(task, outputs)
    named = targets if isinstance(targets, dict) else {task.target_names[0]: targets}
    return {'image': batch['unlabeled'], 'mask': batch['mask'], 'index': batch['index'], **named}
