"""The pictures that an evaluation kept, as scenes with the numbers that matter underneath.

Contents: `scenes` (of one attack at one eps), `Kept`.

Example:

    kept = Kept('segmentation', clean, attacked, target, before, after, index)
    for scene in scenes(kept, title='amat, pgd100, eps 8/255', names=('RV', 'myocardium', 'LV')):
        page_pictures.append(scene)
"""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medrobust_jax.metrics.detection import best_overlaps
from medrobust_jax.metrics.landmarks import radial_errors
from medrobust_jax.metrics.segmentation import dice
from medrobust_jax.report.overlays import Overlay, Scene

# Detections that a user would be shown have a higher score, as in `tasks.detection`.
DECISION_SCORE = 0.25
_Tree = Mapping[str, Any]


class Kept(NamedTuple):
    """A few images before and after one attack at one eps, with leading axis n everywhere.

    Attributes:
      task: the task's name.
      clean: `[n, *spatial, C]` in [0, 1]; volumes are shown by one slice of the first axis.
      attacked: same shape.
      target: an array, or a dict of arrays, as the task has it.
      before: the task's decision on the clean images, an array or a dict.
      after: the same on the attacked ones.
      index: `[n]` rows of the data set.
      before_holds: `[n]` bool, whether the outputs are acceptable, or None.
      after_holds: same.
    """

    task: str
    clean: Any
    attacked: Any
    target: Any
    before: Any
    after: Any
    index: Any
    before_holds: Any = None
    after_holds: Any = None


def scenes(kept: Kept, *, title: str, names: Sequence[str] = ()) -> list[Scene]:
    """One scene per image.

    Args:
      kept: the images, targets and decisions.
      title: of model, attack and eps; the image's index is added.
      names: of the structures from class 1, of the box classes or findings from 0; numbers where empty.

    Raises:
      ValueError: a task that has no drawings.
    """
    if kept.task not in _MAKERS:
        raise ValueError(f"no drawings for the task '{kept.task}'; known: {', '.join(_MAKERS)}")
    drawn = []
    for row, index in enumerate(kept.index):
        target, before, after = (_row(tree, row) for tree in (kept.target, kept.before, kept.after))
        scene = Scene(f'{title}, image {index}', kept.clean[row], kept.attacked[row], names=tuple(names),
                      before_holds=None if kept.before_holds is None else bool(kept.before_holds[row]),
                      after_holds=None if kept.after_holds is None else bool(kept.after_holds[row]))
        drawn.append(_MAKERS[kept.task](scene, target, before, after))
    return drawn


def _row(tree: Any, row: int) -> Any:
    return {name: leaf[row] for name, leaf in tree.items()} if isinstance(tree, Mapping) else tree[row]


def _segmentation(scene: Scene, target: np.ndarray, before: np.ndarray, after: np.ndarray) -> Scene:
    num_classes = max(len(scene.names), *(int(each.max()) for each in (target, before, after))) + 1
    names = _numbered(scene.names, num_classes - 1, first=1)
    texts = [_dice_text(each, target, names) for each in (before, after)]
    caption, images = scene.caption, (scene.clean, scene.adversarial)
    if target.ndim == 3:  # a volume: numbers are of all of it, the drawing is of one slice
        at = int((target > 0).sum(axis=(1, 2)).argmax())
        caption += f', slice {at + 1} of {len(target)}, the one with most foreground; numbers are of the volume'
        target, before, after = target[at], before[at], after[at]
        images = tuple(image[at] for image in images)
    return scene._replace(caption=caption, clean=images[0], adversarial=images[1], names=names,
                          target=Overlay(mask=target), before=Overlay(mask=before), after=Overlay(mask=after),
                          before_text=texts[0], after_text=texts[1])


def _dice_text(found: np.ndarray, target: np.ndarray, names: Sequence[str]) -> str:
    values = dice(found[None], target[None], len(names) + 1)[0]
    known = values[~np.isnan(values)]
    if not len(known):
        return 'nothing there, nothing found'
    each = [f'{name} {"–" if np.isnan(v) else f"{100 * v:.0f}"}'  # noqa: RUF001 - an en dash: in neither
            for name, v in zip(names, values, strict=True)]
    return '\n'.join([f'Dice {100 * known.mean():.0f} %', *([', '.join(each)] if len(names) > 1 else [])])


def _landmarks(scene: Scene, target: np.ndarray, before: np.ndarray, after: np.ndarray) -> Scene:
    texts = [_distance_text(each, target, scene.clean.shape) for each in (before, after)]
    return scene._replace(target=Overlay(points=target), before=Overlay(points=before),
                          after=Overlay(points=after), before_text=texts[0], after_text=texts[1])


def _distance_text(found: np.ndarray, target: np.ndarray, shape: Sequence[int]) -> str:
    height, width = shape[:2]
    errors = radial_errors(found[None], target[None], (100., 100. * width / height))[0]
    return (f'mean error {errors.mean():.1f} %\nof the height; worst {errors.max():.1f} %')


def _shape(scene: Scene, target: _Tree, before: _Tree, after: _Tree) -> Scene:
    inside = (np.asarray(target['segmentation']) > 0).astype(int)
    overlays, texts = [], []
    for found in (before, after):
        overlays.append(Overlay(points=found['points'], mask=np.asarray(found['mask'], int)))
        texts.append(_distance_text(found['points'], target['points'], scene.clean.shape)
                     + '\nmask: ' + _dice_text(overlays[-1].mask, inside, ('mask',)))
    return scene._replace(names=('mask',), target=Overlay(points=target['points'], mask=inside),
                          before=overlays[0], after=overlays[1], before_text=texts[0], after_text=texts[1])


def _detection(scene: Scene, target: _Tree, before: _Tree, after: _Tree) -> Scene:
    there = np.asarray(target['box_mask'], bool)
    true = Overlay(boxes=target['boxes'][there], classes=target['box_labels'][there])
    overlays, texts = [], []
    for found in (before, after):
        shown = np.asarray(found['valid'], bool) & (np.asarray(found['scores']) > DECISION_SCORE)
        overlays.append(Overlay(boxes=found['boxes'][shown], classes=found['classes'][shown],
                                scores=found['scores'][shown]))
        sums, counts = best_overlaps({**{name: leaf[None] for name, leaf in found.items()}, 'valid': shown[None]},
                                     {name: leaf[None] for name, leaf in target.items()})
        overlap = f'average IoU {100 * sums[0] / counts[0]:.0f} %, ' if counts[0] else ''
        texts.append(f'{overlap}{shown.sum()} boxes shown')
    classes = np.concatenate([each.classes for each in (true, *overlays)]).astype(int)
    names = _numbered(scene.names, int(classes.max()) + 1 if len(classes) else 0, first=0)
    return scene._replace(target=true, before=overlays[0], after=overlays[1], names=names,
                          target_text=f'{there.sum()} boxes', before_text=texts[0], after_text=texts[1])


def _multilabel(scene: Scene, target: np.ndarray, before: np.ndarray, after: np.ndarray) -> Scene:
    names = _numbered(scene.names, len(target), first=0)
    target, before, after = (np.asarray(each).astype(bool) for each in (target, before, after))

    def listed(of: np.ndarray) -> str:
        return ', '.join(name for name, one in zip(names, of, strict=True) if one) or 'none'

    parts = [('added by the attack', after & ~before), ('lost to the attack', before & ~after)]
    changes = [f'{what}: {listed(of)}' for what, of in parts if of.any()] or ['findings unchanged']
    wrong = [f'{(each != target).sum()} of {len(names)} findings wrong' for each in (before, after)]
    caption = f'{scene.caption}; true findings: {listed(target)}'
    return scene._replace(caption=caption, before_text=f'{wrong[0]}; found: {listed(before)}',
                          after_text='\n'.join([wrong[1], *changes]))


_MAKERS = {'segmentation': _segmentation, 'landmarks': _landmarks, 'shape': _shape, 'detection': _detection,
           'multilabel': _multilabel}
TASKS = tuple(_MAKERS)


def _numbered(names: Sequence[str], count: int, *, first: int) -> tuple[str, ...]:
    """The names, and numbers where there are too few."""
    return (*names, *(f'class {number + first}' for number in range(len(names), count)))
