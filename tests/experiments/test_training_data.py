"""What a run is trained on: few labels, unlabeled images, as many steps whatever the share of labels."""
import jax
import numpy as np
import pytest

from configs.base import base_config
from configs.defenses import with_few_labels
from experiments import build
from experiments.train import train_and_evaluate
from experiments.training_data import (
    TrainingData,
    check_training_targets,
    defense_title,
    load_training_data,
    training_batches,
)
from medrobust_jax.data.source import ArraySource, Subset, all_labels
from tests.experiments import tiny_config

EVERY_LABEL = 1.0


def config_of(defense, fraction=None):
    config = tiny_config.get_config(defense)
    config.data.options.num_examples = 40
    return config if fraction is None else with_few_labels(config, fraction)


def test_the_field_belongs_to_runs_with_few_labels():
    for defense in ('natural', 'pgd_at', 'hat'):
        assert 'labeled_fraction' not in base_config(defense).data
    for defense in ('ssat', 'rst', 'uat'):
        assert base_config(defense).data.labeled_fraction == EVERY_LABEL
    build.check_config(with_few_labels(base_config('trades'), .05))
    for fraction in (0.0, 1.5, -.1):
        with pytest.raises(ValueError, match=r'config\.data\.labeled_fraction = .* must be in \(0, 1\]'):
            build.check_config(with_few_labels(base_config('trades'), fraction))


def test_parts_of_the_training_split():
    whole, labeled, unlabeled = load_training_data(config_of('natural'), None)
    assert labeled is whole
    assert unlabeled is None
    rows = {}
    for defense in ('natural', 'ssat'):
        data = load_training_data(config_of(defense, .2), None)
        assert (len(data.whole), len(data.labeled)) == (40, 8)
        np.testing.assert_array_equal(np.bincount(all_labels(data.labeled)), [2, 2, 2, 2])
        rows[defense] = data.labeled.info.fingerprint
        batch = next(training_batches(config_of(defense, .2), data, 0))
        assert batch['mask'].all()
        assert ('unlabeled' in batch) == (defense == 'ssat')
    assert rows['natural'] == rows['ssat'], 'baselines are given the same labels'
    assert len(data.unlabeled) == 40
    other = config_of('ssat', .2)
    other.seed = 1
    assert load_training_data(other, None).labeled.info.fingerprint != rows['ssat']


def test_results_name_the_share_of_labels():
    runs = (('ssat', None), ('natural', None), ('natural', .025), ('ssat', .05))
    assert [defense_title(config_of(*run)) for run in runs] == [
        'ssat', 'natural', 'natural, 2.5 % of labels', 'ssat, 5 % of labels']


def test_results_may_be_given_a_label():
    config = config_of('pgd_at', .05)
    config.eval.label = 'half the radius'
    assert defense_title(config) == 'half the radius'


def test_shares_of_labels_make_equally_many_steps():
    steps = {build.build_durations(config, load_training_data(config, None).whole)
             for config in (config_of('natural'), *(config_of('ssat', fraction) for fraction in (.1, .5, 1.0)))}
    assert steps == {build.Durations(3, 6)}


def test_every_label_of_balanced_classes_is_the_run_without_the_field():
    configs = config_of('natural'), config_of('natural', EVERY_LABEL)
    for config in configs:
        config.data.class_balanced = True
    batches = [next(training_batches(config, load_training_data(config, None), 5)) for config in configs]
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_free_training_replays_its_batches():
    config = config_of('free_at')
    data = load_training_data(config, None)
    batches = training_batches(config, data, 2)
    index = [tuple(next(batches)['index']) for _ in range(6)]
    assert index[0] == index[1] != index[2]
    assert len(set(index[2:])) == 1


@pytest.mark.slow
def test_semi_supervised_training_from_start_to_end(tmp_path):
    """A natural run on few labels, then self-training with it; a teacher is saved and found again."""
    results = {}
    for defense, fields in (('natural', {}), ('rst', {'helper': str(tmp_path / 'natural')}),
                            ('ssat', {'teacher_decay': .5})):
        config = config_of(defense, .2)
        for name, value in fields.items():
            config.defense[name] = value
        result = results[defense] = train_and_evaluate(config, tmp_path / defense, progress=False)
        assert int(result.state.step) == 6
        again = train_and_evaluate(config, tmp_path / defense, progress=False)
        jax.tree.map(np.testing.assert_array_equal, again.state.defense_state, result.state.defense_state)
    teacher = results['ssat'].state.defense_state
    assert jax.tree.structure(teacher) == jax.tree.structure((results['ssat'].state.params, {}))
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), teacher[0], results['ssat'].state.params)
    assert max(jax.tree.leaves(moved)) > 0


def bad_points(row=5):
    points = np.full((12, 4, 2), .5, np.float32)
    points[row, 3, 1] = 1.25
    return {'points': points}


def bad_boxes(masked):
    boxes = np.tile(np.float32([.2, .2, .6, .6]), (12, 2, 1))
    boxes[4, 1] = [.6, .2, .2, .6]
    mask = np.ones((12, 2), bool)
    mask[4, 1] = masked
    return {'boxes': boxes, 'box_labels': np.zeros((12, 2), int), 'box_mask': mask}


def made_of(targets, num_names=4):
    return ArraySource(np.zeros((12, 16, 16, 1), np.uint8), targets, name='mine', class_names='abcd'[:num_names])


@pytest.mark.parametrize(('task', 'targets', 'message'), [
    ('landmarks', bad_points(), r'training targets of mine/train: points: row 5, point 3 has y = 1\.25'),
    ('detection', bad_boxes(masked=True), 'mine/train: row 4 holds a box of zero area, or an inverted one'),
    ('classification', np.arange(12) % 4, None), ('detection', bad_boxes(masked=False), None),
    ('segmentation', bad_points(), "mine/train has points; the task 'segmentation' needs segmentation")])
def test_targets_that_no_task_can_learn_from_are_refused_before_a_step(task, targets, message, monkeypatch,
                                                                       tmp_path):
    config, source = base_config('natural', task), made_of(targets)
    if message is None:
        check_training_targets(TrainingData(source, source, None), build.build_task(config, source.info))
        return
    config.data.name, config.model.name = 'mine', 'perceptron'
    monkeypatch.setattr(build, 'load_split', lambda *args: source)
    monkeypatch.setattr(build, 'build_model', None)
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(config, tmp_path, progress=False)


def test_only_rows_that_keep_their_targets_are_checked():
    source = made_of(bad_points(row=5))
    task = build.build_task(base_config('natural', 'landmarks'), source.info)
    unseen = TrainingData(source, Subset(source, [0, 1, 2]), None)
    check_training_targets(unseen, task)
    with pytest.raises(ValueError, match=r'mine/train, among its 2 rows with labels: points: row 1'):
        check_training_targets(unseen._replace(labeled=Subset(source, [0, 5])), task)


@pytest.mark.parametrize('given', ['init_from', 'helper'])
def test_another_run_brings_no_more_labels_than_this_one_has(given, monkeypatch):
    """Neither by its weights nor by what it says of unlabeled images."""
    config = config_of('rst', .2)
    task = build.build_task(config, build.load_split(config, 'val', None).info)
    module = build.build_model(config, task)
    weights = build.initial_variables(config, module, (16, 16, 1))
    other = config_of('natural', .2)
    monkeypatch.setattr(build, 'load_for_evaluation',
                        lambda *args: (*weights, {'config': build.training_config(other)}))
    if given == 'init_from':
        config.train.init_from = 'runs/natural'
    else:
        config.defense.helper = 'runs/natural'

    def take():
        return (build.initial_variables(config, module, (16, 16, 1)) if given == 'init_from'
                else build.build_helper(config, task))

    take()
    other = config_of('natural')
    with pytest.raises(ValueError, match=rf'{given} = runs/natural saw 1 of the labels .*: labels would leak'):
        take()
    other = config_of('natural', .2)
    other.seed = 1
    with pytest.raises(ValueError, match=r'with seed 1, this run has 0\.2 with seed 0: labels would leak'):
        take()
    other = config_of('natural', .2)
    other.data.train_split = 'val'
    with pytest.raises(ValueError, match='was trained on oct_phantom, val: choose a run on oct_phantom, train'):
        take()
    other = config_of('natural')
    other.data.name = 'organ_phantom'
    if given == 'init_from':
        take()  # pretrained elsewhere: it has seen none of these labels
    else:
        with pytest.raises(ValueError, match='was trained on organ_phantom, train'):
            take()


def test_all_labels_may_start_from_any_run(monkeypatch):
    config, other = config_of('ssat', EVERY_LABEL), config_of('natural', .2)
    module = build.build_model(config, build.build_task(config, build.load_split(config, 'val', None).info))
    weights = build.initial_variables(config, module, (16, 16, 1))
    monkeypatch.setattr(build, 'load_for_evaluation',
                        lambda *args: (*weights, {'config': build.training_config(other)}))
    config.train.init_from = 'runs/natural'
    assert build.initial_variables(config, module, (16, 16, 1)) == weights
