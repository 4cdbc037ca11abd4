"""Explanations of a trained run: rows, kept examples, the page, saved images, and the ways it can be misused."""
from types import SimpleNamespace as Fake

import numpy as np
import pytest
from absl import logging
from ml_collections import ConfigDict

from configs.base import threat
from experiments.evaluate import evaluate
from experiments.explain import Options, check_explainable, explain
from experiments.report import write_report
from experiments.train import train_and_evaluate
from medrobust_jax.data.files import read_npz
from medrobust_jax.evaluate.records import read_rows

QUICK = Options(ig_steps=8)


@pytest.fixture
def convolutional(tiny_config, tmp_path):
    """A tiny ResNet, trained for one step, with its config and workdir."""
    config = tiny_config('natural')
    config.model.name = 'resnet'
    config.model.options = ConfigDict({'stage_sizes': (1,), 'width': 8, 'norm': 'group'})
    config.train.epochs = .5
    config.validation.max_examples = 4
    config.eval.max_examples = 12
    train_and_evaluate(config, tmp_path / 'resnet', progress=False)
    return config, tmp_path / 'resnet'


@pytest.mark.slow
def test_a_convolutional_run_is_explained_both_ways(convolutional, tmp_path):
    config, workdir = convolutional
    rows = explain(config, workdir, attack='fgsm', eps=.0314, options=QUICK, progress=False)
    measures = {row.metric for row in rows}
    for method in ('gradcam', 'ig'):
        for measure in ('rank_correlation', 'top_overlap', 'center_shift'):
            assert {f'{method}_{measure}{end}' for end in ('', '/noise', '/beyond_noise')} <= measures
    assert {(r.attack, r.norm, r.eps, r.model, r.defense) for r in rows} == {
        ('fgsm', 'linf', 8 / 255, 'resnet', 'natural')}, 'a rounded radius is the one of the grid'
    by_name = {row.metric: row for row in rows}
    assert by_name['ig_rank_correlation'].n == 12, 'images that are wrong without an attack are attacked as well'
    assert by_name['ig_rank_correlation'].forward_passes >= 2
    assert by_name['ig_rank_correlation'].attack_options['explained'] == 'prediction'
    assert by_name['ig_rank_correlation/noise'].value < 1
    assert by_name['ig_completeness_gap'].value < .05
    halves = [by_name[f'ig_rank_correlation/{half}'].n for half in ('changed', 'unchanged')
              if f'ig_rank_correlation/{half}' in by_name]
    assert sum(halves) == 12
    kept = read_npz(workdir / 'explanations.npz')
    assert kept['gradcam/attacked'].shape == (len(kept['index']), 16, 16)
    assert abs(kept['attacked'] - kept['clean']).max() <= 8 / 255 + 1e-6
    np.testing.assert_array_equal(kept['clean/prediction'], kept['target'])  # those shown are right at first
    assert {row.metric for row in read_rows(workdir / 'results.jsonl')} == measures
    write_report([workdir], tmp_path / 'report.html', title='t')
    page = (tmp_path / 'report.html').read_text()
    assert 'id="explanations"' in page
    assert 'truth: ' in page


def test_a_perceptron_has_integrated_gradients_alone(trained, tiny_config, monkeypatch):
    said = []
    monkeypatch.setattr(logging, 'warning', lambda text, *values: said.append(text % values))
    rows = explain(tiny_config(), trained, options=QUICK, progress=False)
    assert {row.metric.partition('_')[0] for row in rows} == {'ig'}
    assert {(row.attack, row.eps) for row in rows} == {('smia3', 8 / 255)}, 'the last attack, the upper middle'
    assert 'Perceptron has none: use integrated gradients' in said[0]
    other = QUICK._replace(explained='clean')
    with pytest.raises(ValueError, match=r'made with --explained=prediction --ig_steps=8 .*: add --replace'):
        explain(tiny_config(), trained, options=other, progress=False)
    of_clean = explain(tiny_config(), trained, options=other, replace=True, progress=False)
    kept = read_rows(trained / 'results.jsonl')
    assert {row.attack_options['explained'] for row in kept} == {'clean'}, 'a table shows one kind'
    assert {row.key for row in kept} == {row.key for row in of_clean}
    unchanged = [{row.metric: row.value for row in each}.get('ig_rank_correlation/unchanged') for each in
                 (rows, of_clean)]
    assert unchanged[0] == unchanged[1], 'where the answer stays, both explain the same class'


def test_saved_images_are_taken_as_they_are(trained, tiny_config):
    config = tiny_config()
    config.eval.attacks = ConfigDict({'fgsm': threat('fgsm')})
    options = QUICK._replace(saved=True)
    with pytest.raises(FileNotFoundError, match='save_images=True first, or leave out --saved'):
        explain(config, trained, options=options, progress=False)
    config.eval.save_images, config.eval.stop_when_fooled = True, False
    evaluate(config, trained, progress=False)
    crafted, saved = ({row.metric: row.value for row in explain(config, trained, options=each, progress=False)}
                      for each in (QUICK, options))
    assert saved == crafted
    with pytest.raises(ValueError, match=r'no images at eps = 0\.1: set --eps to one of 0\.0078431, 0\.031373'):
        explain(config, trained, eps=.1, options=options, progress=False)


def test_refusals(trained, tiny_config):
    with pytest.raises(ValueError, match=r"attack in config\.eval\.attacks 'pgd4'; did you mean 'pgd3'"):
        explain(tiny_config(), trained, attack='pgd4')
    with pytest.raises(ValueError, match="did you mean 'clean'"):
        explain(tiny_config(), trained, options=Options(explained='cleen'))
    with pytest.raises(ValueError, match="did you mean 'black'"):
        explain(tiny_config(), trained, options=Options(ig_baseline='blak'))
    config = tiny_config()
    config.task.name = 'ordinal'
    with pytest.raises(ValueError, match='another config'):
        explain(config, trained)


def test_a_task_without_a_logit_per_class_is_refused():
    with pytest.raises(ValueError, match="the task 'ordinal' has none"):
        check_explainable(Fake(name='ordinal'), Fake(images=np.zeros((1, 4, 4, 1))))
    with pytest.raises(ValueError, match=r'not of shape \(1, 4, 4, 4, 1\)'):
        check_explainable(Fake(name='classification'), Fake(images=np.zeros((1, 4, 4, 4, 1))))
