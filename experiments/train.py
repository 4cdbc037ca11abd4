"""Trains one model: `python -m experiments.train --config=configs/retinamnist.py:trades --workdir=runs/trades`.

Run the same command again after any interruption and it goes on from the newest checkpoint.
"""
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import build
from experiments.training_data import check_training_targets, load_training_data, replays_of, training_batches
from medrobust_jax.attacks.registry import create_attack
from medrobust_jax.core.types import Task
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.suite import Examples, GridPoint, Threat, attack_grid, clean_point
from medrobust_jax.models.forward import apply_model
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.train.loop import FitResult, fit
from medrobust_jax.train.state import create_state


def train_and_evaluate(config: ConfigDict, workdir: str | Path, *, data_dir: str | None = None,
                       progress: bool | None = None) -> FitResult:
    """Trains as `config` says, keeping the checkpoint that is best on validation data.

    Args:
      config: as in configs/base.py.
      workdir: the run's folder: checkpoints, metrics; refused if it holds another config's run.
      data_dir: where data sets are looked for; None reads MEDROBUST_DATA.
      progress: True for a bar, False for silence, None to decide by the terminal.

    Returns:
      The last state and the best checkpoint's metadata.
    """
    build.check_config(config)
    mesh = data_mesh()
    data = load_training_data(config, data_dir)
    train = data.labeled
    validation = build.load_split(config, config.data.validation_split, data_dir)
    task, judged = (build.build_task(config, train.info, training=each) for each in (True, False))
    check_training_targets(data, task)
    module = build.build_model(config, task)
    durations = build.build_durations(config, data.whole)
    defense = build.build_defense(config, task, durations)
    optimizer = build.build_optimizer(config, durations)

    params, model_state = build.initial_variables(config, module, train.info.image_shape)
    logging.info('%s, %d parameters, on %s (%d images, %d with labels)', config.model.name,
                 sum(leaf.size for leaf in jax.tree.leaves(params)), config.data.name, len(data.whole), len(train))
    forward = apply_model(module)
    state = create_state(forward, params, model_state, defense, optimizer, num_train=len(train),
                         image_shape=train.info.image_shape, seed=config.seed, mesh=mesh,
                         ema_decay=config.train.ema_decay)
    return fit(
        state, forward=forward, defense=defense, optimizer=optimizer,
        train_batches=partial(training_batches, config, data), steps=durations.total,
        steps_per_epoch=durations.steps_per_epoch,
        evaluate_fn=validator(config, module, judged, mesh=mesh,
                              examples=build.examples_of(validation, judged, config.validation.max_examples)),
        select_metric=config.validation.select_metric, eval_every=durations.steps(config.train.eval_every_epochs),
        checkpoint_every=durations.steps(config.train.checkpoint_every_epochs), workdir=workdir,
        config_dict=build.training_config(config), seed=config.seed, mesh=mesh, log_every=config.train.log_every,
        ema_decay=config.train.ema_decay, augment=build.build_augment(config, train),
        replays=replays_of(config), progress=progress)


def validator(config: ConfigDict, module: Any, task: Task, *, examples: Examples, mesh: Any) -> Any:
    """What decides which checkpoint is best: quality on validation data, clean and under PGD from a random start.

    Returns:
      `(params, model_state) -> {name: value}` with, of clean images and, after 'robust_', at
      `config.validation.eps`: 'accuracy', the share of acceptable outputs; 'score', minus the mean loss; and
      'balanced_accuracy' of classes. Where classes are unequal, accuracy favors a model that names the largest
      class whatever it sees; balanced accuracy does not. Where the criterion is a threshold, accuracy says little
      about an early model; the score does.
    """
    layout = make_layout(mesh, width=config.eval.block_width, chunk=config.eval.chunk)
    model = apply_model(module)
    norm = config.validation.get('norm', config.defense.attack.options.get('norm', 'linf'))
    threat = Threat('pgd', create_attack('pgd', num_steps=config.validation.num_steps, norm=norm), norm)

    def forward(variables: Any, images: jax.Array, keys: jax.Array) -> Any:
        return model(*variables, images, batch_norm='eval')[0]

    def evaluate(params: Any, model_state: Any) -> dict[str, float]:
        variables = (params, model_state)
        clean = clean_point(forward, variables, task, examples, layout=layout, seed=config.seed)
        # A loss is the attack's largest only where it was run to the end.
        (attacked,) = attack_grid(forward, variables, task, threat, examples, (config.validation.eps,),
                                  layout=layout, seed=config.seed, clean=clean,
                                  stop_when_fooled=task.quality is None)
        return {**_qualities('', clean, examples), **_qualities('robust_', attacked, examples)}

    return evaluate


def _qualities(prefix: str, point: GridPoint, examples: Examples) -> dict[str, float]:
    right = point.result.acceptable
    found = {f'{prefix}accuracy': float(right.mean()), f'{prefix}score': -float(np.mean(point.result.loss))}
    if np.ndim(examples.targets) == 1:
        per_class = [right[examples.targets == label].mean() for label in np.unique(examples.targets)]
        found[f'{prefix}balanced_accuracy'] = float(np.mean(per_class))
    return found


if __name__ == '__main__':
    from absl import flags

    from experiments import main

    main.launch(lambda config, workdir: train_and_evaluate(config, workdir, data_dir=flags.FLAGS.data_dir))
