"""From configs to objects: misspelled names get the nearest, impossible values are refused, nobody is left out."""
import re
import shlex
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.base import base_config, threat
from experiments import build
from medrobust_jax.core.types import Attack
from medrobust_jax.data.source import ArraySource, all_labels
from medrobust_jax.tasks.classification import classification
from medrobust_jax.tasks.ordinal import ordinal

TASK = classification(3)
INFO = ArraySource(np.zeros((3, 4, 4, 1), np.uint8), [0, 1, 2], name='three', class_names='abc').info
DURATIONS = build.Durations(10, 100)
ROOT = Path(__file__).parents[2]


def changed(**fields):
    config = base_config('pgd_at')
    for name, value in fields.items():
        *parents, last = name.split('__')
        target = config
        for parent in parents:
            target = target[parent]
        with target.unlocked(), target.ignore_type():
            target[last] = value
    return config


@pytest.mark.parametrize(('config', 'message'), [
    (changed(sede=1), "unknown config field 'sede'; did you mean 'seed'"),
    (changed(train__epocs=1), r"unknown config field 'train\.epocs'; did you mean 'train\.epochs'"),
    (changed(defense__attack__nme='pgd'), r"did you mean 'defense\.attack\.name'"),
    (changed(defense__eps=-1 / 255), r'config\.defense\.eps = -0\.0039\d+ must be finite and >= 0'),
    (changed(validation__eps=float('nan')), r'config\.validation\.eps = nan must be finite'),
    (changed(eval__eps=(1 / 255, -8 / 255)), r'config\.eval\.eps = .* must be finite and >= 0'),
    (changed(eval__eps=()), r'config\.eval\.eps is empty'),
    (changed(train__log_every=0), r'config\.train\.log_every = 0 must be positive'),
    (changed(train__eval_every_epochs=0.), r'config\.train\.eval_every_epochs = 0\.0 must be positive'),
    (changed(train__checkpoint_every_epochs=-1.), r'config\.train\.checkpoint_every_epochs = -1\.0 must be'),
    (changed(train__batch_size=0), r'config\.train\.batch_size = 0 must be positive'),
    (changed(train__epochs=float('nan')), r'config\.train\.epochs = nan must be positive'),
    (changed(eval__max_examples=0), r'config\.eval\.max_examples = 0 must be positive'),
    (changed(eval__block_width=0), r'config\.eval\.block_width = 0 must be positive'),
])
def test_configs_no_run_can_have(config, message):
    with pytest.raises(ValueError, match=message):
        build.check_config(config)


def test_the_defaults_are_a_config():
    for defense in build.DEFENSES:
        build.check_config(base_config(defense))
    with pytest.raises(ValueError, match="unknown defense 'trade'"):
        base_config('trade')


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: build.build_task(changed(task__name='ordinl'), INFO), "did you mean 'ordinal'"),
    (lambda: build.build_model(changed(model__name='resnet81'), TASK), "unknown model 'resnet81'; did you mean"),
    (lambda: build.build_model(changed(model__options=ConfigDict({'widht': 3})), TASK), "did you mean 'width'"),
    (lambda: build.build_defense(changed(defense__name='pgdat'), TASK, DURATIONS), "did you mean 'pgd_at'"),
    (lambda: build.build_defense(changed(defense__attack__name='pdg'), TASK, DURATIONS), "did you mean 'pgd'"),
    (lambda: build.build_defense(changed(defense__attack__options=ConfigDict({'nun_steps': 3})), TASK, DURATIONS),
     "did you mean 'num_steps'"),
    (lambda: build.build_defense(changed(defense__eps_low=.5), TASK, DURATIONS), 'eps_low = 0.5 exceeds'),
    (lambda: build.build_optimizer(changed(optimizer__name='adan'), DURATIONS), "did you mean 'adam'"),
    (lambda: build.build_optimizer(changed(optimizer__schedule='cosin'), DURATIONS), "did you mean 'cosine'"),
    (lambda: build.build_augment(changed(data__augment=(('flip_horizontl', {}),)), None),
     "mean 'flip_horizontal'"),
    (lambda: build.load_split(changed(data__name='retinamnits'), 'train', None), "did you mean 'retinamnist'"),
    (lambda: build.load_split(base_config(), 'train', None), r'config\.data\.name is empty'),
    (lambda: build.build_threats({'x': threat('pgd_adamax_mask')}, TASK), "'classification' has not both"),
    (lambda: build.build_threats({'x': threat('pdg')}, TASK), "unknown attack 'pdg'; did you mean 'pgd'"),
    (lambda: build.build_threats({'x': threat('pgd', norm='l3')}, TASK), "unknown norm.* 'l3'"),
    (lambda: build.build_threats({'x': threat('pgd', num_step=3)}, TASK), "did you mean 'num_steps'"),
    (lambda: build.build_threats({'x': threat('pgd', num_restarts=0)}, TASK), 'num_restarts >= 1'),
    (lambda: build.build_threats({'x': {'attack': 'pgd', 'restarts': 3}}, TASK),
     r"did you mean 'eval\.attacks\.x\.num_restarts'"),
    (lambda: build.build_threats({'x': {'num_restarts': 3}}, TASK), 'needs an attack'),
])
def test_misspelled_names_get_the_nearest(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_threats_carry_plain_options_and_the_task_divergence():
    task = ordinal(3)
    threats = build.build_threats(ConfigDict({'a': threat('smia', num_steps=3), 'b': {'attack': 'fgsm'},
                                              'c': threat('pgd', num_restarts=4, norm='l2')}), task)
    assert [(t.name, t.norm, t.num_restarts, t.options) for t in threats] == [
        ('a', 'linf', 1, {'attack': 'smia', 'num_steps': 3}), ('b', 'linf', 1, {'attack': 'fgsm'}),
        ('c', 'l2', 4, {'attack': 'pgd', 'norm': 'l2'})]
    assert all(isinstance(t.attack, Attack) for t in threats)


def source(labels, num_classes):
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    names = [str(label) for label in range(num_classes)]
    return ArraySource(images, labels, name='sorted', split='val', class_names=names)


def test_some_examples_of_a_sorted_source_are_some_of_every_class():
    """Folders are sorted by class: the first rows of all would be of one class."""
    sorted_source = source(np.repeat([0, 1, 2], [40, 20, 8]), 3)
    few = build.examples_of(sorted_source, classification(3), 17)
    np.testing.assert_array_equal(np.bincount(few.targets), [10, 5, 2])
    np.testing.assert_array_equal(few.images[:, 0, 0, 0], few.index.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(few.targets, all_labels(sorted_source)[few.index])
    more = build.examples_of(sorted_source, classification(3), 30)
    assert set(few.index) < set(more.index), 'more examples extend fewer'
    for everything in (None, 68, 999):
        np.testing.assert_array_equal(build.examples_of(sorted_source, TASK, everything).index, np.arange(68))
    mixed = build.examples_of(source(np.arange(40) % 4, 4), classification(4), 12)
    np.testing.assert_array_equal(mixed.index, np.arange(12))


def test_durations():
    durations = build.Durations(7, 70)
    assert [durations.steps(epochs) for epochs in (0, .01, .5, 1, 2.5)] == [0, 1, 4, 7, 18]


def test_label_smoothing_is_for_training_alone():
    config = changed(task__label_smoothing=.2)
    logits, labels = jnp.array([[3., 0., 0.]]), jnp.array([0])
    training, judged = (build.build_task(config, INFO, training=t).loss(logits, labels) for t in (True, False))
    assert training[0] > judged[0]


def test_attacks_that_read_logits_are_not_run_on_grades():
    with pytest.raises(ValueError, match="'fab' reads one logit per class, and the task 'ordinal' has none"):
        build.build_threats({'x': threat('fab')}, ordinal(3))
    with pytest.raises(ValueError, match="loss must be 'task'"):
        build.build_threats({'x': threat('apgd', loss='dlr')}, ordinal(3))
    (made,) = build.build_threats({'x': threat('apgd')}, ordinal(3))
    assert made.options == {'attack': 'apgd', 'loss': 'task'}
    (made,) = build.build_threats({'x': threat('medical_ensemble')}, ordinal(3))
    assert [member.name for member in made.members] == ['apgd', 'apgd_clean', 'square']
    with pytest.raises(ValueError, match="not defined for the task 'ordinal'"):
        build.build_threats({'x': threat('autoattack')}, ordinal(3))


def test_strengths_that_are_no_radii_need_a_grid_of_their_own():
    with pytest.raises(ValueError, match='needs a grid of its own'):
        build.build_threats({'x': threat('corruption_jpeg')}, TASK)
    (made,) = build.build_threats({'x': threat('corruption_jpeg', eps=(1, 3))}, TASK)
    assert (made.norm, made.eps) == ('severity', (1, 3))
    with pytest.raises(ValueError, match="'pgd' aims at no target"):
        build.build_threats({'x': threat('pgd', num_targets=3)}, TASK)


def test_thresholds_of_another_task_are_refused(tmp_path):
    (tmp_path / 'thresholds.json').write_text('{"thresholds": [-0.5], "task": "landmarks"}')
    config = base_config('amat', 'landmarks')
    config.task.calibrated_on = str(tmp_path)
    assert build.criterion_of(config) == (-.5,)
    config = base_config('amat', 'shape')
    config.task.calibrated_on = str(tmp_path)
    message = r"thresholds\.json holds thresholds of the task 'landmarks', and config\.task\.name is 'shape'"
    with pytest.raises(ValueError, match=message):
        build.criterion_of(config)
    config = base_config('natural', 'shape')
    config.eval.calibrated_on = str(tmp_path)
    with pytest.raises(ValueError, match=message):
        build.criterion_of(config, judged=True)
    (tmp_path / 'thresholds.json').write_text('{"thresholds": [-0.5]}')
    with pytest.raises(ValueError, match=r"is damaged \('task'\)"):
        build.criterion_of(config, judged=True)


def test_landmarks_are_judged_in_millimeters_where_the_config_says_how_large_a_pixel_is():
    config = base_config('natural', 'landmarks')
    info = ArraySource(np.zeros((2, 200, 160, 1), np.uint8), {'points': np.full((2, 4, 2), .5)}, name='x',
                       class_names='abcd').info
    assert 'pixel_size' not in build.training_config(config)['task'], 'older runs stay what they were'
    config.task.unit = 'mm'
    with pytest.raises(ValueError, match=r'--config\.task\.pixel_size="\(1\.2'):
        build.build_task(config, info)
    config.task.pixel_size = (1.2, 1.209375)
    build.check_config(config)
    points = np.full((2, 4, 2), .5)
    found = build.build_task(config, info).metrics(points + np.array([0, .01]), points)
    assert found['mean_radial_error'].value == pytest.approx(2.4)
    assert {'detected_within_2', 'detected_within_2.5', 'detected_within_4'} <= set(found)
    assert build.training_config(config)['task']['pixel_size'] == [1.2, 1.209375]
    config.task.unit = 'px'
    with pytest.raises(ValueError, match=r"unit = 'px' with config\.task\.pixel_size = \(1\.2"):
        build.build_task(config, info)


COMMANDS = re.findall(r'`python -m experiments\.train (.*?)`', (ROOT / 'docs' / 'data.md').read_text())


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # ml_collections
@pytest.mark.parametrize('command', COMMANDS)
def test_commands_for_other_data_sets_ask_for_the_files_alone(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ['train', *(word for word in shlex.split(command) if not word.startswith('--workdir'))]
    monkeypatch.setattr(sys, 'argv', arguments)  # where ml_collections looks for the fields
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values)
    values(arguments)
    build.check_config(values.config)
    with pytest.raises(FileNotFoundError, match=rf'looked (for|in) .*{tmp_path}'):
        build.load_split(values.config, 'train', str(tmp_path))


def test_there_are_commands_for_other_data_sets():
    assert len(COMMANDS) == 5
