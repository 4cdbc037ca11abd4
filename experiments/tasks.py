"""From a config to its task: the one file that knows the names of the tasks.

Contents: `make_task`, `thresholds_of`. `experiments.build.build_task` is what others call.
"""
import json
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from configs.tasks import TASKS
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Task
from medrobust_jax.data.source import SourceInfo
from medrobust_jax.tasks.classification import classification
from medrobust_jax.tasks.detection import detection
from medrobust_jax.tasks.landmarks import landmarks
from medrobust_jax.tasks.multilabel import multilabel
from medrobust_jax.tasks.ordinal import ordinal
from medrobust_jax.tasks.segmentation import segmentation
from medrobust_jax.tasks.shape import shape

THRESHOLDS = 'thresholds.json'  # in the workdir of the model that was measured


def make_task(chosen: ConfigDict, info: SourceInfo, *, training: bool, threshold: tuple[float, ...]) -> Task:
    """The task over what a source holds.

    Args:
      chosen: `config.task`; its fields are those of its task (configs/tasks.py).
      info: of the source: names, image size.
      training: label smoothing and the like belong to training alone.
      threshold: of the criterion; empty for the task's default.

    Raises:
      ValueError: for an unknown name or values that the task refuses.
    """
    if chosen.name not in TASKS:
        did_you_mean(chosen.name, TASKS, 'config.task.name')
    return _MAKERS[chosen.name](chosen, info, training, {'threshold': threshold} if threshold else {})


def thresholds_of(workdir: str | Path, *, task: str) -> tuple[float, ...]:
    """The thresholds that `experiments.calibrate` left in a workdir.

    Args:
      workdir: of the run that was measured.
      task: `config.task.name`, whose criterion they become.

    Raises:
      FileNotFoundError: where it left none, saying how to make them.
      ValueError: for a damaged file, or thresholds of another task, whose qualities have another scale.
    """
    path = Path(workdir) / THRESHOLDS
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist: run experiments.calibrate on a naturally trained run in '
                                f'{workdir} first')
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        theirs, thresholds = str(found['task']), tuple(map(float, found['thresholds']))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is damaged ({error}): run experiments.calibrate again') from error
    if theirs != task:
        raise ValueError(f"{path} holds thresholds of the task '{theirs}', and config.task.name is '{task}': name "
                         'a run of the same task in calibrated_on')
    return thresholds


def _classification(chosen: ConfigDict, info: SourceInfo, training: bool, criterion: dict) -> Task:
    return classification(info.num_classes, label_smoothing=chosen.label_smoothing if training else 0.0)


def _ordinal(chosen: ConfigDict, info: SourceInfo, training: bool, criterion: dict) -> Task:
    return ordinal(info.num_classes, tolerance=chosen.tolerance)


def _multilabel(chosen: ConfigDict, info: SourceInfo, training: bool, criterion: dict) -> Task:
    return multilabel(info.num_classes, tolerance=chosen.tolerance, label_names=info.class_names, **criterion)


def _segmentation(chosen: ConfigDict, info: SourceInfo, training: bool, criterion: dict) -> Task:
    return segmentation(info.num_classes, over=chosen.over, loss=chosen.loss, class_names=info.class_names,
                        **criterion)


def _landmarks(chosen: ConfigDict, info: SourceInfo, training: bool, criterion: dict) -> Task:
    size, pixel_size = info.image_shape[:2], chosen.get('pixel_size')
    if (chosen.unit == 'mm') != (pixel_size is not None):
        raise ValueError(f"config.task.unit = '{chosen.unit}' with config.task.pixel_size = {pixel_size}: 'mm', "
                         f'and it alone, needs the (height, width) in mm of a pixel of the images, here of '
                         f'{size[0]} x {size[1]} pixels, e.g. --config.task.pixel_size="(1.2, 1.2)"')
    return landmarks(info.num_classes, size=size, radius=chosen.radius, z=chosen.z, unit=chosen.unit,
                     pixel_size=pixel_size, cobb_angles=chosen.cobb_angles, **criterion)


def _detection(chosen: ConfigDict, info: SourceInfo, training: bool, criterion: dict) -> Task:
    return detection(info.num_classes, weights=chosen.weights, max_detections=chosen.max_detections,
                     class_names=info.class_names, **criterion)


def _shape(chosen: ConfigDict, info: SourceInfo, training: bool, criterion: dict) -> Task:
    return shape(info.num_classes, size=info.image_shape[:2], z=chosen.z, contour=chosen.contour,
                 cobb_angles=chosen.cobb_angles, **criterion)


_MAKERS: dict[str, Callable[[ConfigDict, SourceInfo, bool, dict], Task]] = {
    'classification': _classification, 'ordinal': _ordinal, 'multilabel': _multilabel,
    'segmentation': _segmentation, 'landmarks': _landmarks, 'detection': _detection, 'shape': _shape,
}
