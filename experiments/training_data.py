"""What a run is trained on: its examples with labels, the images without, and their batches.

Contents: `TrainingData`, `load_training_data`, `check_training_targets`, `training_batches`, `replays_of`,
`defense_title`.

Example:

    data = load_training_data(config, data_dir=None)
    durations = build.build_durations(config, data.whole)
    for batch in training_batches(config, data, start_step=0):
        ...
"""
from collections.abc import Iterator
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from configs.defenses import SEMI_SUPERVISED
from experiments import build
from medrobust_jax.core.types import Task
from medrobust_jax.data.few_labels import ImagesOnly, few_labels
from medrobust_jax.data.loader import NumpyBatch, train_batches
from medrobust_jax.data.source import Source, all_of


class TrainingData(NamedTuple):
    """The training split in its parts.

    Attributes:
      whole: the split, over which epochs are counted: runs with few labels make as many steps as those with all.
      labeled: what may be learned from with targets; `whole` unless `config.data.labeled_fraction` is there.
      unlabeled: the images of the whole split, with all targets withheld [ours: so that every share of labels is
        defined, and all images are seen whatever it is]; None where the defense does not read them.
    """

    whole: Source
    labeled: Source
    unlabeled: Source | None


def load_training_data(config: ConfigDict, data_dir: str | None) -> TrainingData:
    """Opens the training split of the config's data set."""
    whole = build.load_split(config, config.data.train_split, data_dir)
    fraction = config.data.get('labeled_fraction')
    labeled = whole if fraction is None else few_labels(whole, fraction, seed=config.seed)
    return TrainingData(whole, labeled, ImagesOnly(whole) if config.defense.name in SEMI_SUPERVISED else None)


def check_training_targets(data: TrainingData, task: Task) -> None:
    """Raises for targets that the task cannot learn from, before a step is made on them.

    Every process looks at all rows that keep their targets, so that all refuse them or none does.

    Raises:
      ValueError, TypeError: where a target is absent, or for the first row that the task refuses.
    """
    info = data.labeled.info
    build.check_present(data.labeled[0], task, data.labeled)
    found = {name: all_of(data.labeled, name) for name in task.target_names}
    try:
        task.check_targets(task.targets(found))
    except (ValueError, TypeError) as error:
        counted = '' if data.labeled is data.whole else f', among its {len(data.labeled)} rows with labels'
        raise type(error)(f'training targets of {info.name}/{info.split}{counted}: {error}') from error


def replays_of(config: ConfigDict) -> int:
    """How many steps in turn are made on one batch: 1, except for free adversarial training."""
    return config.defense.get('replays', 1)


def defense_title(config: ConfigDict) -> str:
    """What results call the run: `config.eval.label`, else its defense and the share of labels where below 1.

    Two runs of one defense, at two radii say, need labels to be told apart by name.
    """
    if config.eval.label:
        return config.eval.label
    fraction = config.data.get('labeled_fraction', 1.0)
    return config.defense.name if fraction == 1 else f'{config.defense.name}, {100 * fraction:.6g} % of labels'


def training_batches(config: ConfigDict, data: TrainingData, start_step: int) -> Iterator[NumpyBatch]:
    """This process's part of the batches from `start_step` on."""
    return train_batches(data.labeled, batch_size=config.train.batch_size, seed=config.seed, start_step=start_step,
                         class_balanced=config.data.class_balanced, cycle='labeled_fraction' in config.data,
                         unlabeled=data.unlabeled, replays=replays_of(config),
                         process_index=jax.process_index(), process_count=jax.process_count())
