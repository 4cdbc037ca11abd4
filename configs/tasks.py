"""The fields of `config.task` that belong to one task alone.

Not a run of its own: configs/base.py calls it. As with the defenses (configs/defenses.py), a task's fields are
those that it reads, so that new tasks leave older runs what they were.
"""
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

TASKS = ('classification', 'ordinal', 'multilabel', 'segmentation', 'landmarks', 'detection', 'shape')


def task_fields(name: str) -> ConfigDict:
    """`config.task` of the task `name`."""
    if name not in TASKS:
        raise ValueError(f"unknown task '{name}'; known: {', '.join(TASKS)}")
    task = ConfigDict({'name': name})
    if name in ('classification', 'ordinal'):
        task.label_smoothing = 0.0  # classification, training only
        task.tolerance = 0  # ordinal: grades that an acceptable prediction may be off
        return task
    # What an output must reach to be acceptable: given here, or measured by experiments.calibrate on the run
    # named; with neither, the task's own default. A run is identified by the numbers, not by their origin.
    task.threshold = ()
    task.calibrated_on = placeholder(str)
    fill = {'multilabel': _multilabel, 'segmentation': _segmentation, 'landmarks': _landmarks,
            'detection': _detection, 'shape': _shape}
    fill[name](task)
    return task


def _multilabel(task: ConfigDict) -> None:
    task.tolerance = 0  # findings that an acceptable output may get wrong


def _segmentation(task: ConfigDict) -> None:
    task.over = 'best'  # the structure that the criterion is about: 'best', 'mean', 'worst'
    task.loss = 'dice_ce'  # or 'ce'


def _landmarks(task: ConfigDict) -> None:
    task.radius = 0.05  # of the disks, in units of the height
    task.z = 3.0  # robust standard deviations that a loss may lie above the clean one
    task.unit = 'percent'  # of the metrics: 'px', 'percent' of the height, or 'mm'
    # For 'mm' alone: (height, width) in mm of a pixel of the resized images. Cephalometric images, of .1 mm at
    # 2400 x 1935, have (1.2, 1.209375) at (200, 160). Where it is None, runs are identified as if it were absent.
    task.pixel_size = placeholder(tuple)
    task.cobb_angles = False  # the landmarks are corners of vertebrae


def _detection(task: ConfigDict) -> None:
    task.weights = (1.0, 1.0, 1.0)  # of box, objectness and class loss
    task.max_detections = 100


def _shape(task: ConfigDict) -> None:
    task.z = 3.0  # robust standard deviations that a distance may lie above the clean one
    task.contour = 'boundary'  # or 'spine': the order in which points enclose the mask
    task.cobb_angles = False
