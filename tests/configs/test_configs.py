"""Every config with every defense is a run: it builds, and one training step fits together."""
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from configs import few_labels
from configs.defenses import SEMI_SUPERVISED
from experiments import build
from experiments.training_data import load_training_data, replays_of, training_batches
from medrobust_jax.data import registry
from medrobust_jax.data.medmnist import DATASETS
from medrobust_jax.data.source import ArraySource
from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.parallel.mesh import data_mesh, put_batch
from medrobust_jax.train.state import create_state
from medrobust_jax.train.step import make_train_step

PARTS = ('__init__', 'base', 'defenses', 'dense_cpu', 'few_labels', 'medmnist_cpu', 'tasks')  # of other configs
EVERYWHERE = ('natural', 'pgd_at', 'trades', 'amat')  # the others: with one config, and with all in the long tests
NAMES = sorted(path.stem for path in Path(configs.__file__).parent.glob('*.py') if path.stem not in PARTS)
ROWS = 16
STEPS = [pytest.param(name, defense, marks=[] if defense in EVERYWHERE or name == 'oct_phantom' else
                      pytest.mark.long) for name in NAMES for defense in build.DEFENSES]


def get_config(name, defense):
    return importlib.import_module(f'configs.{name}').get_config(defense)


MANY_CLASSES = ('busi', 'oct2017', 'oct_phantom', 'octmnist', 'organ_phantom', 'resnet18_gpu', 'retinamnist')
# Drawn images in the place of data sets whose targets are no labels.
PHANTOMS = {'acdc': 'cardiac_phantom', 'cardiac_volume': 'cardiac_volume', 'aasce': 'spine_phantom',
            'bccd': 'cell_phantom', 'chestmnist': 'chest_phantom'}
OWN_OPTIONS = {'spine_phantom': {'num_vertebrae': 17}, 'cell_phantom': {'size': 64}}


def images_like(name, split, *, size=None, **options):
    """Random images in the shape of the named data set, every class among them."""
    if name in PHANTOMS:
        given = {'size': size or options.get('size', 32), **OWN_OPTIONS.get(PHANTOMS[name], {})}
        return registry.SOURCES[PHANTOMS[name]](split, num_examples=ROWS, **given)
    classes, channels = (DATASETS[name].class_names, DATASETS[name].channels) if name in DATASETS else ('abcd', 1)
    size = size or 28
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, size, size, channels), dtype=np.uint8)
    return ArraySource(pixels, np.arange(ROWS) % len(classes), name=name, split=split, class_names=list(classes))


def untrained(config, task):
    """What stands for the net of another run."""
    module = build.build_model(config, task)

    def helper(images):
        weights = init_variables(module, build.init_key(1), images.shape[1:])
        return apply_model(module)(*weights, images, batch_norm='eval')[0]
    return helper


@pytest.fixture
def parts(monkeypatch):
    """`parts(config)` -> (weights of key, state of weights, train step, batch) on one device, eight images."""
    monkeypatch.setattr(registry, 'load', lambda name, split, data_dir=None, **options: images_like(
        name, split, **options))
    monkeypatch.setattr(build, 'build_helper', untrained)

    def make(config):
        build.check_config(config)
        config.train.batch_size = 8
        data = load_training_data(config, None)
        source = data.labeled
        task = build.build_task(config, source.info, training=True)
        module, durations = build.build_model(config, task), build.build_durations(config, data.whole)
        defense, optimizer = build.build_defense(config, task, durations), build.build_optimizer(config, durations)
        build.build_threats(config.eval.attacks, task)
        forward, mesh = apply_model(module), data_mesh(jax.devices()[:1])
        image_shape = source.info.image_shape

        def state_of(variables):
            return create_state(forward, *variables, defense, optimizer, num_train=len(source),
                                image_shape=image_shape, seed=0, mesh=mesh, ema_decay=config.train.ema_decay)

        step = make_train_step(forward, defense, optimizer, augment=build.build_augment(config, source), seed=0,
                               ema_decay=config.train.ema_decay, mesh=mesh, replays=replays_of(config))
        batch = next(training_batches(config, data, 0))
        assert ('unlabeled' in batch) == (config.defense.name in SEMI_SUPERVISED)
        return lambda key: init_variables(module, key, image_shape), state_of, step, put_batch(mesh, batch)
    return make


@pytest.mark.parametrize(('name', 'defense'), STEPS)
def test_a_step_fits_together(parts, name, defense):
    """Traced, not computed: a ResNet-18's step takes a CPU minutes to compile for all of them."""
    config = get_config(name, defense)
    assert config.defense.name == defense
    if defense == 'gce' and name not in MANY_CLASSES:
        with pytest.raises(ValueError, match='three classes or more'):
            parts(config)
        return
    weights, state_of, step, batch = parts(config)
    shapes = jax.eval_shape(weights, build.init_key(0))
    state = state_of(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    after, metrics = jax.eval_shape(step, state, batch)
    before, after = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each) for each in (state, after))
    assert before == after, 'a step keeps shapes and dtypes, or the next one is compiled again'
    assert {'loss', 'gradient_norm'} <= set(metrics)


@pytest.mark.slow
def test_a_step_learns(parts):
    weights, state_of, step, batch = parts(get_config('oct_phantom', 'pgd_at'))
    state = state_of(weights(build.init_key(0)))
    before = jax.tree.map(np.array, state.params)
    state, metrics = step(state, batch)
    assert int(state.step) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, metrics)))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, state.params)
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize('name', NAMES)
def test_the_docstring_gives_the_command(name):
    text = importlib.import_module(f'configs.{name}').__doc__
    assert f'--config=configs/{name}.py' in text


@pytest.mark.parametrize('name', NAMES)
def test_an_unknown_defense_is_refused(name):
    with pytest.raises(ValueError, match=r"unknown defense 'tradse' after the colon of --config"):
        get_config(name, 'tradse')


@pytest.mark.parametrize('name', NAMES)
def test_radii_are_of_the_norm_that_they_are_used_in(name):
    for defense in build.DEFENSES:
        config = get_config(name, defense)
        own = config.defense.attack.options.norm
        for norm, eps in ((own, config.defense.eps), (config.validation.get('norm', own), config.validation.eps)):
            assert norm in ('linf', 'l2')
            assert norm == 'l2' or 0 < eps < .2, f'{defense}: {eps} is no radius in Linf'
        if defense == 'te' and config.task.name in ('segmentation', 'landmarks', 'detection', 'shape'):
            assert {name for name, _ in config.data.augment} <= {'intensity'}, 'outputs are averaged in place'


@pytest.mark.parametrize('name', NAMES)
def test_the_checkpoint_is_chosen_by_what_the_defense_is_for(name):
    for defense in build.DEFENSES:
        metric = get_config(name, defense).validation.select_metric
        assert metric.startswith('robust_') == (defense != 'natural')


@pytest.mark.parametrize('defense', ['natural', 'ssat'])
def test_any_config_with_few_labels(parts, defense):
    config = few_labels.get_config(f'oct_phantom/{defense}')
    assert config.data.labeled_fraction == 1.0
    config.data.labeled_fraction = .3
    weights, state_of, step, batch = parts(config)
    shapes = jax.eval_shape(weights, build.init_key(0))
    jax.eval_shape(step, state_of(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)), batch)
    assert batch['mask'].all(), 'fewer labels than a batch has rows: they come again'
    assert len(np.unique(batch['index'])) == 4, 'one of each of four classes of four examples'
    plain = get_config('oct_phantom', defense)
    with plain.data.unlocked():
        plain.data.labeled_fraction = .3
    for part in ('data', 'defense', 'validation', 'eval'):
        assert plain[part].to_dict() == config[part].to_dict()
    with pytest.raises(ValueError, match="did you mean 'oct_phantom'"):
        few_labels.get_config('oct_phantm/ssat')
    for part in PARTS:
        with pytest.raises(ValueError, match=f"unknown config before the slash of --config '{part}'"):
            few_labels.get_config(f'{part}/natural')
