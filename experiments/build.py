"""From configuration to objects: the one file that knows every name.

Contents: `check_config`, `build_task`, `build_model`, `build_defense`, `build_optimizer`,
`build_augment`, `build_threats`, `load_split`, `initial_variables`, `Durations`.
"""
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from configs.base import base_config, threat
from configs.defenses import DEFENSES, with_few_labels
from configs.tasks import TASKS
from experiments.defenses import make_defense, needs_helper
from experiments.tasks import make_task, thresholds_of
from medrobust_jax.attacks.registry import (
    MINIMUM_NORM,
    MOVES_PIXELS,
    NEEDS_LOGITS,
    NEEDS_PIXEL_LOGITS,
    NEEDS_SHAPES,
    TAKES_TASK_LOSS,
    TARGETED,
    create_attack,
    norm_of_attack,
)
from medrobust_jax.core import balls
from medrobust_jax.core.checks import check_eps, check_options, did_you_mean
from medrobust_jax.core.types import Defense, Task
from medrobust_jax.data import loader, registry, transforms
from medrobust_jax.data.few_labels import check_fraction
from medrobust_jax.data.shape_transforms import model_of, shape_warp
from medrobust_jax.data.source import Source, SourceInfo, all_of, read_batch
from medrobust_jax.evaluate.ensembles import autoattack, medical_ensemble, segmentation_ensemble
from medrobust_jax.evaluate.suite import Ensemble, Examples, Threat
from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.registry import create_model
from medrobust_jax.train.checkpoint import load_for_evaluation
from medrobust_jax.train.optim import create_optimizer, create_schedule

ENSEMBLES = {'autoattack': autoattack, 'medical_ensemble': medical_ensemble, 'sea': segmentation_ensemble}
_GIVEN = ('num_classes', 'task', 'margin')  # of an ensemble: the task's, not the config's
_OPEN = ('options', 'attacks')  # fields whose keys are checked where they are used
_POSITIVE = ('train.epochs', 'train.batch_size', 'train.eval_every_epochs', 'train.checkpoint_every_epochs',
             'train.log_every', 'validation.max_examples', 'eval.max_examples', 'eval.block_width', 'eval.chunk')


def check_config(config: ConfigDict) -> None:
    """Raises ValueError for a field that no run has, suggesting the nearest, or a value that none can have."""
    known = with_few_labels(base_config(config.defense.name if config.defense.name in DEFENSES else 'natural',
                                        config.task.name if config.task.name in TASKS else 'classification'), 1.0)
    _check_fields(config, known, '')
    missing = [name for name in known.defense if name not in config.defense]
    if missing:
        raise ValueError(f"config.defense lacks {', '.join(missing)}: choose the defense after the colon of "
                         f"--config, ...py:{config.defense.name}, not by config.defense.name")
    missing = [name for name in known.task if name not in config.task]
    if missing:
        raise ValueError(f"config.task lacks {', '.join(missing)}: start from "
                         f"base_config(defense, task='{config.task.name}')")
    for field in _POSITIVE:
        part, _, name = field.partition('.')
        value: Any = getattr(config, part)[name]
        if value is not None and not value > 0:
            raise ValueError(f'config.{field} = {value} must be positive')
    check_fraction(config.data.get('labeled_fraction', 1.0), field='config.data.labeled_fraction')
    if not config.eval.eps:
        raise ValueError('config.eval.eps is empty: name at least one radius, e.g. --config.eval.eps=0.03')
    check_eps(config.defense.eps, field='config.defense.eps')
    check_eps(config.validation.eps, field='config.validation.eps')
    check_eps(tuple(config.eval.eps), field='config.eval.eps')


def _check_fields(config: ConfigDict, known: ConfigDict, prefix: str) -> None:
    for name, value in config.items():
        if name not in known:
            did_you_mean(prefix + name, [prefix + other for other in known], 'config field')
        if isinstance(value, ConfigDict) and name not in _OPEN:
            _check_fields(value, getattr(known, name), f'{prefix}{name}.')


def training_config(config: ConfigDict) -> dict[str, Any]:
    """The plain values that decide a training run's results, as JSON holds them; 'eval' is not among them."""
    values = {name: value for name, value in config.to_dict().items() if name != 'eval'}
    if 'calibrated_on' in values['task']:
        del values['task']['calibrated_on']
        values['task']['threshold'] = criterion_of(config)
    if values['task'].get('pixel_size') is None:
        values['task'].pop('pixel_size', None)  # older runs had no such field
    start = values['train'].pop('init_from', None)
    if start:
        values['train']['init_from'] = load_for_evaluation(start, 'best')[2]['checkpoint_fingerprint']
    return json.loads(json.dumps(values))


def criterion_of(config: ConfigDict, *, judged: bool = False) -> tuple[float, ...]:
    """The thresholds of the criterion; empty for the task's default.

    Args:
      config: names them, or the run that they were measured on.
      judged: for an evaluation, whose criterion `config.eval.calibrated_on` may replace.
    """
    if judged and config.eval.calibrated_on:
        return thresholds_of(config.eval.calibrated_on, task=config.task.name)
    if config.task.get('calibrated_on'):
        if config.task.threshold:
            raise ValueError('config.task.calibrated_on and config.task.threshold name the criterion twice: '
                             'set one')
        return thresholds_of(config.task.calibrated_on, task=config.task.name)
    return tuple(config.task.get('threshold', ()))


def load_split(config: ConfigDict, split: str, data_dir: str | None) -> Source:
    """Opens one split of the config's data set."""
    if not config.data.name:
        raise ValueError('config.data.name is empty: name a data set, e.g. --config.data.name=folder:my_images')
    if config.data.size is not None and 'size' in config.data.options:
        raise ValueError('this config names the size as config.data.options.size, e.g. '
                         '--config.data.options.size="(128, 64)"; leave config.data.size alone')
    options = {'size': config.data.size, **config.data.options.to_dict()}  # a pair stands among the options
    return registry.load(config.data.name, split, data_dir=data_dir, **options)


def examples_of(source: Source, task: Task, max_examples: int | None) -> Examples:
    """The first `max_examples` of a source (None: all), in memory; of every class or patient its share.

    Sources may be sorted by class or patient: the first rows of all would then be of one.

    Raises:
      ValueError: where the source lacks a target that the task asks for.
    """
    rows = np.arange(len(source))
    if max_examples is not None and max_examples < len(source):
        labels = all_of(source, 'label')
        if labels is None and source.info.has_groups:
            labels = np.unique([source[row]['group'] for row in rows], return_inverse=True)[1]
        rows = rows[:max_examples] if labels is None else share_of_each_class(labels, max_examples)
    batch = read_batch(source, rows)
    check_present(batch, task, source)
    return Examples(batch['image'], task.targets(batch), rows, batch.get('group'))


def check_present(names: Iterable[str], task: Task, source: Source) -> None:
    """Raises ValueError where the task asks for a target that is not among `names`, those of a source."""
    present = sorted(set(names) - {'image'})
    missing = [name for name in task.target_names if name not in present]
    if missing:
        raise ValueError(f"{source.info.name}/{source.info.split} has {', '.join(present)}; "
                         f"the task '{task.name}' needs {', '.join(missing)}: set config.task.name")


def share_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """`count` rows (fewer if there are fewer), the first ones of every class in proportion to its size."""
    place = np.empty(len(labels))  # in its class, from 0 to 1
    for label in np.unique(labels):
        members = labels == label
        place[members] = np.arange(members.sum()) / members.sum()
    return np.sort(np.argsort(place, kind='stable')[:count])


def build_task(config: ConfigDict, info: SourceInfo, *, training: bool = False) -> Task:
    """The task over what a source holds; label smoothing belongs to training alone."""
    return make_task(config.task, info, training=training, threshold=criterion_of(config, judged=not training))


def build_model(config: ConfigDict, task: Task) -> Any:
    """The Flax module."""
    return create_model(config.model.name, task.num_outputs, **config.model.options.to_dict())


def initial_variables(config: ConfigDict, module: Any, image_shape: tuple[int, ...]) -> tuple[Any, Any]:
    """`(params, model_state)` that training starts from: drawn by the seed, or those of `config.train.init_from`.

    Raises:
      FileNotFoundError: where that run has no checkpoint.
      ValueError: where its weights do not fit the model, or this run has few labels and that one saw others of
        the same data.
    """
    drawn = init_variables(module, init_key(config.seed), image_shape)
    if not config.train.init_from:
        return drawn
    params, model_state, metadata = load_for_evaluation(config.train.init_from, 'best')
    # Weights of other data, which pretraining may come from, have seen none of these labels.
    if config.data.get('labeled_fraction', 1.0) < 1 and metadata['config']['data']['name'] == config.data.name:
        check_same_labels(config, metadata['config'], field='config.train.init_from', value=config.train.init_from)
    found = (params, model_state)
    ours, theirs = (jax.tree.map(jnp.shape, tree) for tree in (drawn, found))
    if ours != theirs:
        raise ValueError(f'config.train.init_from = {config.train.init_from} holds another model than '
                         f"config.model, '{config.model.name}' for images {image_shape}: choose a run of the same "
                         f'model, options and data size')
    return found


class Durations(NamedTuple):
    """Lengths given in epochs, in steps: resolved here and nowhere else."""

    steps_per_epoch: int
    total: int

    def steps(self, epochs: float) -> int:
        """Epochs to whole steps, at least one where epochs > 0."""
        return 0 if epochs <= 0 else max(1, round(epochs * self.steps_per_epoch))


def build_durations(config: ConfigDict, source: Source) -> Durations:
    """The length of an epoch and of the run, in steps."""
    per_epoch = loader.steps_per_epoch(source, config.train.batch_size)
    return Durations(per_epoch, max(1, round(config.train.epochs * per_epoch)))


def build_defense(config: ConfigDict, task: Task, durations: Durations) -> Defense:
    """The training objective, see `experiments.defenses`."""
    helper = build_helper(config, task) if needs_helper(config.defense) else None
    return make_defense(config, task, durations, helper=helper)


def build_helper(config: ConfigDict, task: Task) -> Any:
    """The naturally trained net of the workdir `config.defense.helper`: `images -> outputs`.

    Raises:
      ValueError: where none is named, or it saw other images or more labels than this run may.
    """
    if not config.defense.helper:
        raise ValueError('config.defense.helper is empty: name the workdir of a natural run on the same data, '
                         'e.g. --config.defense.helper=runs/natural')
    helper, metadata = trained_model(config.defense.helper, task)
    check_same_labels(config, metadata['config'], field='config.defense.helper', value=config.defense.helper)
    return helper


def check_same_labels(config: ConfigDict, theirs: Mapping[str, Any], *, field: str, value: str) -> None:
    """Raises ValueError unless another run learned from the very images and labels that this one may learn from.

    Args:
      config: this run's.
      theirs: the other's, plain.
      field: that names the other run, for the message.
      value: of the field.
    """
    share, ours = theirs['data'].get('labeled_fraction', 1.0), config.data.get('labeled_fraction', 1.0)
    place = f'{field} = {value}'
    if (theirs['data']['name'], theirs['data']['train_split']) != (config.data.name, config.data.train_split):
        raise ValueError(f"{place} was trained on {theirs['data']['name']}, {theirs['data']['train_split']}: "
                         f'choose a run on {config.data.name}, {config.data.train_split}')
    if share != ours or (ours < 1 and theirs['seed'] != config.seed):
        raise ValueError(f"{place} saw {share:g} of the labels with seed {theirs['seed']}, this run has {ours:g} "
                         f'with seed {config.seed}: labels would leak; name a run with '
                         f'--config.data.labeled_fraction={ours:g} --config.seed={config.seed}')


def trained_model(workdir: str, task: Task) -> tuple[Callable[[jax.Array], Any], Mapping[str, Any]]:
    """The best checkpoint of another run, as `images -> outputs`, and its metadata.

    Raises:
      ValueError: where it was trained for another task.
    """
    params, model_state, metadata = load_for_evaluation(workdir, 'best')
    name = metadata['config']['task']['name']
    if name != task.name:
        raise ValueError(f"{workdir} was trained for the task '{name}', not '{task.name}'")
    trained = base_config(metadata['config']['defense']['name'], name)
    trained.update(metadata['config'])
    model = apply_model(build_model(trained, task))
    return lambda images: model(params, model_state, images, batch_norm='eval')[0], metadata


def build_optimizer(config: ConfigDict, durations: Durations) -> optax.GradientTransformation:
    """The optimizer with its schedule."""
    chosen = config.optimizer
    rate = create_schedule(chosen.schedule, peak=chosen.learning_rate, steps=durations.total,
                           warmup_steps=durations.steps(chosen.warmup_epochs))
    return create_optimizer(chosen.name, rate, momentum=chosen.momentum, nesterov=chosen.nesterov,
                            weight_decay=chosen.weight_decay, decay_norm_and_bias=chosen.decay_norm_and_bias,
                            clip_norm=chosen.clip_norm)


def build_augment(config: ConfigDict, source: Source) -> Any:
    """The composed augmentation, or None; a shape model is fitted to the source."""
    chosen = []
    for name, options in config.data.augment:
        if name == 'shape_warp':
            options = dict(options)
            model = model_of(source, num_modes=options.pop('num_modes'))
            chosen.append(shape_warp(model, **options))
            continue
        if name not in transforms.TRANSFORMS:
            did_you_mean(name, transforms.TRANSFORMS, 'augmentation in config.data.augment')
        chosen.append(transforms.TRANSFORMS[name](**dict(options)))
    return transforms.compose(*chosen) if chosen else None


def build_threats(attacks: Mapping[str, Any], task: Task) -> list[Threat | Ensemble]:
    """The attacks of an evaluation, in the order of the config."""
    threats: list[Threat | Ensemble] = []
    for name, spec in attacks.items():
        _check_fields(spec, threat('pgd'), f'eval.attacks.{name}.')
        spec = {'num_restarts': 1, 'num_targets': 1, 'options': {}, 'eps': (), **spec}
        if 'attack' not in spec or spec['num_restarts'] < 1:
            raise ValueError(f'config.eval.attacks.{name} needs an attack and num_restarts >= 1; see '
                             f'configs.base.threat')
        options = dict(spec['options'])
        if spec['attack'] in ENSEMBLES:
            threats.append(build_ensemble(name, spec['attack'], options, task)._replace(eps=tuple(spec['eps'])))
            continue
        if spec['attack'] == 'smia' and task.name != 'classification':
            # On a task of its own the divergence is the task's, unless the config names one.
            options.setdefault('stabilization', task.divergence)
        if spec['attack'] in NEEDS_PIXEL_LOGITS and task.name != 'segmentation':
            raise ValueError(f"config.eval.attacks.{name}: '{spec['attack']}' reads logits per pixel, and the "
                             f"task '{task.name}' has none; pgd, smia, apgd take any task")
        if spec['attack'] in NEEDS_SHAPES and task.name != 'shape':
            raise ValueError(f"config.eval.attacks.{name}: '{spec['attack']}' reads points and a mask, and "
                             f"the task '{task.name}' has not both; pgd_adamax climbs any task's loss")
        if spec['attack'] in MOVES_PIXELS and not {'label', 'findings'} & set(task.target_names):
            raise ValueError(f"config.eval.attacks.{name}: '{spec['attack']}' moves the image and not its "
                             f"{', '.join(task.target_names)}: a right answer would count as wrong")
        if task.name != 'classification':
            if spec['attack'] in NEEDS_LOGITS:
                raise ValueError(f"config.eval.attacks.{name}: '{spec['attack']}' reads one logit per class, and "
                                 f"the task '{task.name}' has none; pgd, smia, apgd, square, ddn take any task")
            if spec['attack'] in TAKES_TASK_LOSS and options.setdefault('loss', 'task') != 'task':
                raise ValueError(f"config.eval.attacks.{name}: on the task '{task.name}' loss must be 'task'")
        attack = create_attack(spec['attack'], **options)
        plain = {key: value for key, value in options.items() if not callable(value)}
        norm = norm_of_attack(spec['attack'], plain)
        if norm not in balls.NORMS and not spec['eps']:
            raise ValueError(f"config.eval.attacks.{name} needs a grid of its own, e.g. eps=(1, 3, 5): what "
                             f"'{spec['attack']}' is given is no radius in pixel values but a {norm}")
        if spec['num_targets'] > 1 and spec['attack'] not in TARGETED:
            raise ValueError(f'config.eval.attacks.{name} has num_targets = {spec["num_targets"]}, but '
                             f"'{spec['attack']}' aims at no target; targeted are {', '.join(sorted(TARGETED))}")
        threats.append(Threat(name, attack, norm, spec['num_restarts'], {'attack': spec['attack'], **plain},
                              spec['num_targets'], spec['attack'] in MINIMUM_NORM, tuple(spec['eps'])))
    return threats


def build_ensemble(name: str, kind: str, options: Mapping[str, Any], task: Task) -> Ensemble:
    """The ensemble `kind` of `ENSEMBLES`, called `name`."""
    known = inspect.signature(ENSEMBLES[kind]).parameters
    check_options(options, [option for option in known if option not in _GIVEN], f"option of '{kind}'")
    if kind == 'autoattack':
        if task.name != 'classification':
            raise ValueError(f"AutoAttack is not defined for the task '{task.name}': use 'medical_ensemble'")
        made = autoattack(num_classes=task.num_outputs, **options)
    elif kind == 'sea':
        if task.name != 'segmentation':
            raise ValueError(f"SEA is defined for segmentation, not for the task '{task.name}'")
        made = segmentation_ensemble(**options)
    else:
        made = medical_ensemble(num_classes=task.num_outputs, task=task.name, margin=task.margin, **options)
    return made._replace(name=name, options={'attack': kind, **made.options, **options})


def init_key(seed: int) -> jax.Array:
    """The key that a run's weights are drawn from."""
    return jax.random.fold_in(jax.random.key(seed), 0x1417)
