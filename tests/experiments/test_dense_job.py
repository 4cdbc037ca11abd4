"""Masks from data to verdicts: train, calibrate, train with margins per image, evaluate by the same criterion."""
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import acdc
from configs.base import threat
from experiments import build, smia_claims
from experiments.calibrate import calibrate
from experiments.evaluate import evaluate
from experiments.train import train_and_evaluate
from medrobust_jax.evaluate.verdicts import load_verdicts
from medrobust_jax.train.checkpoint import load_defense_state, load_for_evaluation


def tiny(defense):
    config = acdc.get_config(defense)
    config.data.name, config.data.size = 'cardiac_phantom', 16
    config.data.options = ConfigDict({'num_examples': 24})
    config.model.options = ConfigDict({'width': 4, 'depth': 2})
    config.defense.attack.options.num_steps = 2
    config.train.update({'batch_size': 8, 'epochs': 2.0, 'eval_every_epochs': 2.0,
                         'checkpoint_every_epochs': 2.0})
    config.validation.update({'num_steps': 1, 'max_examples': 8})
    config.eval.update({'max_examples': 6, 'chunk': 16, 'eps': (4 / 255,), 'num_pictures': 2})
    config.eval.attacks = ConfigDict({'pgd2': threat('pgd', num_steps=2),
                                      'smia2_l2': threat('smia', eps=(.1, .2), norm='l2', num_steps=2),
                                      'segpgd2': threat('segpgd', num_steps=2), 'sea': threat('sea', num_steps=8)})
    return config


@pytest.fixture(scope='module')
def natural(tmp_path_factory):
    """A naturally trained run with its thresholds."""
    workdir = tmp_path_factory.mktemp('natural')
    train_and_evaluate(tiny('natural'), workdir, progress=False)
    return workdir, calibrate(tiny('natural'), workdir, split='train')


def test_thresholds_are_the_clean_models_own(natural):
    workdir, found = natural
    assert json.loads((workdir / 'thresholds.json').read_text()) == found
    assert (found['num_examples'], len(found['thresholds'])) == (24, 1), 'the whole split, whatever eval asks for'
    low, high = found['quality_percentiles']['5'], found['quality_percentiles']['95']
    assert low <= found['thresholds'][0] <= high
    with pytest.raises(ValueError, match='clean-trained model'):
        calibrate(tiny('pgd_at'), workdir, split='train')


def test_margins_train_and_are_judged_by_the_calibrated_criterion(natural, tmp_path):
    workdir, found = natural
    config = tiny('amat')
    config.task.calibrated_on = str(workdir)
    assert build.training_config(config)['task']['threshold'] == found['thresholds']
    train_and_evaluate(config, tmp_path, progress=False)
    margins = load_defense_state(tmp_path)['margins']
    assert margins.shape == (24,)
    assert (margins >= 0).all()
    rows = evaluate(config, tmp_path, progress=False)
    assert {row.provenance['criterion'][0] for row in rows} == set(found['thresholds'])
    assert {'dice', 'iou_LV', 'hd95_RV', 'robust_accuracy'} <= {row.metric for row in rows if row.attack == 'pgd2'}
    assert not [row.warnings for row in rows if row.attack == 'sea' and 'gradients of' in str(row.warnings)]
    verdicts = load_verdicts(tmp_path / 'verdicts' / 'smia2_l2.npz')
    assert verdicts.label is None
    np.testing.assert_array_equal(verdicts.acceptable, verdicts.quality >= found['thresholds'][0])
    np.testing.assert_array_equal(verdicts.withstood_clean, verdicts.clean_quality >= found['thresholds'][0])
    assert verdicts.about['criterion'] == found['thresholds']
    dice = {(row.attack, row.eps): row.value for row in rows if row.metric == 'dice'}
    assert dice['smia2_l2', .2] <= dice['clean', 0.] + 1e-6
    with np.load(tmp_path / 'pictures.npz') as pictures:
        assert pictures['pgd2/prediction'].shape[0] == 1
        assert pictures['smia2_l2/prediction'].dtype == np.uint8


def test_a_natural_run_is_judged_by_the_criterion_that_is_named(natural, tmp_path):
    workdir, found = natural
    config = tiny('natural')
    config.eval.attacks = ConfigDict({'pgd2': threat('pgd', num_steps=2)})
    config.eval.calibrated_on = str(workdir)
    rows = evaluate(config, workdir, progress=False)
    assert {row.provenance['criterion'][0] for row in rows} == set(found['thresholds'])
    config.eval.calibrated_on = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"run experiments\.calibrate"):
        evaluate(config, workdir, progress=False)


def test_attacks_for_other_outputs_are_refused(natural):
    config = tiny('natural')
    task = build.build_task(config, build.load_split(config, 'val', None).info)
    with pytest.raises(ValueError, match='reads one logit per class'):
        build.build_threats({'x': threat('fab')}, task)
    with pytest.raises(ValueError, match="not defined for the task 'segmentation'"):
        build.build_threats({'x': threat('autoattack')}, task)
    with pytest.raises(ValueError, match='logits per pixel'):
        build.build_threats({'x': threat('segpgd')}, build.build_task(
            build.base_config(), build.registry.load('oct_phantom', 'val', num_examples=4).info))


def test_what_cannot_be_meant_is_refused(natural):
    config = tiny('natural')
    task = build.build_task(config, build.load_split(config, 'val', None).info)
    with pytest.raises(ValueError, match='moves the image and not its segmentation'):
        build.build_threats({'x': threat('spatial', eps=(1.,))}, task)
    config.task.threshold, config.task.calibrated_on = (.5,), str(natural[0])
    with pytest.raises(ValueError, match='name the criterion twice'):
        build.criterion_of(config)
    config = tiny('natural')
    config.data.options.size = 16
    with pytest.raises(ValueError, match=r'leave config\.data\.size alone'):
        build.load_split(config, 'val', None)


def test_a_model_that_is_never_acceptable_is_judged(tmp_path):
    config = tiny('natural')
    config.task.threshold = (1.,)
    config.eval.attacks = ConfigDict({'pgd2': threat('pgd', num_steps=1)})
    train_and_evaluate(config, tmp_path, progress=False)
    rows = evaluate(config, tmp_path, progress=False)
    assert {row.value for row in rows if row.metric == 'robust_accuracy'} == {0.}


def test_training_starts_from_the_weights_of_a_run(natural, tmp_path):
    workdir, _ = natural
    config = tiny('pgd_at')
    config.train.init_from = str(workdir)
    module = build.build_model(config, build.build_task(config, build.load_split(config, 'val', None).info))
    params, model_state, about = load_for_evaluation(workdir, 'best')
    jax.tree.map(np.testing.assert_array_equal, (params, model_state),
                 build.initial_variables(config, module, (16, 16, 1)))
    assert build.training_config(config)['train']['init_from'] == about['checkpoint_fingerprint']
    assert 'init_from' not in build.training_config(tiny('pgd_at'))['train'], 'older runs stay what they were'
    train_and_evaluate(config, tmp_path, progress=False)
    with pytest.raises(ValueError, match='init_from needs it here too'):
        evaluate(tiny('pgd_at'), tmp_path, progress=False)
    config.model.options.width = 8
    with pytest.raises(ValueError, match='holds another model'):
        train_and_evaluate(config, tmp_path / 'other', progress=False)


@pytest.mark.slow
def test_smias_claims_are_judged_on_masks_too(natural, tmp_path, monkeypatch):
    workdir, found = natural
    monkeypatch.setattr(smia_claims, 'NUM_STEPS', 3)
    weights = {f'smia_a2_{a2}': {'attack': 'smia', 'num_restarts': 1, 'options': {
        'num_steps': 3, 'stabilization_weight': a2}} for a2 in (0, 1)}
    monkeypatch.setattr(smia_claims, 'variants', lambda task: weights)
    monkeypatch.setattr(smia_claims, 'NUM_RESTARTS', 2)
    monkeypatch.setattr(smia_claims, 'rivals', lambda task: {'fgsm': {'attack': 'fgsm', 'num_restarts': 1}})
    config = tiny('natural')
    config.eval.update({'calibrated_on': str(workdir), 'max_examples': 4})
    rows = smia_claims.judge_claims(config, str(workdir), eps_grid=[8 / 255])
    of = {(row['ours'], row['measure']): row for row in rows}
    assert {what for ours, what in of if ours == 'smia_a2_1'} == {
        'robust_accuracy', 'quality', 'variance_over_iterations', 'variance_over_restarts',
        'share_of_falling_steps'}
    assert {tuple(row['provenance']['criterion']) for row in rows} == {tuple(found['thresholds'])}
    assert 0 <= of['smia_a2_1', 'share_of_falling_steps']['ours_value'] <= 1
    assert 0 < of['smia_a2_1', 'variance_over_iterations']['ours_value'] < 1, 'of perturbations in units of eps'
    out = tmp_path / 'claims.jsonl'
    assert len(smia_claims.write_rows(out, rows)) == len(smia_claims.write_rows(out, rows)) == len(rows)
    table = smia_claims.table_of(rows)
    assert table.columns[3] == 'cardiac_phantom natural, 8/255'
    assert ['2', 'variance over iterations', 'a2 = 0'] in [line[:3] for line in table.lines]
