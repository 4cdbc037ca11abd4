"""The main job on a perceptron and a few phantoms: train, evaluate, report, and the ways it can be misused."""
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.evaluate import evaluate
from experiments.report import gather_rows, pictures_of, text_tables, write_report
from experiments.train import train_and_evaluate
from medrobust_jax.data import registry
from medrobust_jax.evaluate.records import read_rows
from medrobust_jax.evaluate.verdicts import load_verdicts
from medrobust_jax.train.checkpoint import load_for_evaluation


def only(config, *attacks):
    """The config with some of its attacks, at one eps."""
    config.eval.attacks = ConfigDict({name: config.eval.attacks[name] for name in attacks})
    config.eval.eps = (8 / 255,)
    return config


def by_measurement(rows):
    return {(row.attack, row.eps, row.metric): (row.value, row.low, row.high) for row in rows}


def test_train_evaluate_report(trained, fit_result, tiny_config, tmp_path):
    assert int(fit_result.state.step) == 4
    assert set(fit_result.best['metrics']) == {'accuracy', 'balanced_accuracy', 'robust_accuracy',
                                               'robust_balanced_accuracy', 'score', 'robust_score'}
    rows = evaluate(tiny_config(), trained, progress=False)
    assert {row.attack for row in rows} == {'clean', 'fgsm', 'pgd3', 'smia3', 'worst_case'}
    metadata = load_for_evaluation(trained)[2]
    for row in rows:
        assert (row.dataset, row.split, row.model, row.defense, row.seed, row.n) == (
            'oct_phantom', 'test', 'perceptron', 'pgd_at', 0, 32)
        assert row.provenance['checkpoint_fingerprint'] == metadata['checkpoint_fingerprint']
        assert row.provenance['config_fingerprint'] == metadata['config_fingerprint']
        assert len(row.provenance['dataset_fingerprint']) == 64
    assert load_verdicts(trained / 'verdicts' / 'pgd3.npz').acceptable.shape == (2, 32)

    again = evaluate(tiny_config(), trained, progress=False)
    assert repr(by_measurement(again)) == repr(by_measurement(rows)), 'the same seed, the same verdicts'
    assert len(read_rows(trained / 'results.jsonl')) == len(rows)

    out = tmp_path / 'pages' / 'report.html'
    write_report([trained], out, title='Phantoms', class_names=('normal', 'dme', 'drusen', 'cnv'))
    page = out.read_text()
    assert all(text in page for text in ('Phantoms', 'pgd_at', 'smia3', 'data:image/png;base64,'))
    assert not any(f'{tag}="http' in page or f'{tag}="/' in page for tag in ('src', 'href')), 'self-contained'
    table = text_tables(rows)
    assert all(text in table for text in ('eps 2/255', 'eps 8/255', 'fgsm', 'pgd3', 'smia3'))
    assert '| fgsm' in text_tables(rows, markdown=True).replace('  ', ' ')


def test_a_finished_run_does_nothing_more(trained, fit_result, tiny_config):
    before = (trained / 'metrics.jsonl').read_bytes()
    again = train_and_evaluate(tiny_config(), trained, progress=False)
    jax.tree.map(np.testing.assert_array_equal, again.state.params, fit_result.state.params)
    assert again.best['step'] == fit_result.best['step']
    assert (trained / 'metrics.jsonl').read_bytes() == before


def test_training_opens_no_test_image(tiny_config, tmp_path, monkeypatch):
    opened, load = [], registry.load
    monkeypatch.setattr(registry, 'load', lambda name, split, **options: opened.append(split) or load(
        name, split, **options))
    config = only(tiny_config('natural'), 'fgsm')
    config.train.epochs = 0.5
    train_and_evaluate(config, tmp_path, progress=False)
    assert sorted(opened) == ['train', 'val']
    evaluate(config, tmp_path, progress=False)
    assert opened[2:] == ['test']


def test_a_workdir_of_another_config_is_refused_by_field(trained, tiny_config):
    config = tiny_config()
    config.defense.eps = 0.25
    with pytest.raises(ValueError, match=r'defense\.eps: 0\.031\d* -> 0\.25') as refused:
        train_and_evaluate(config, trained, progress=False)
    assert str(refused.value).count('->') == 2, 'one field, and the legend: tuples that are equal are not listed'
    with pytest.raises(ValueError, match=r'another config; differing fields: defense\.eps: \S+ -> 0\.25$'):
        evaluate(config, trained, progress=False)


def test_the_evaluation_may_differ_from_the_training(trained, tiny_config):
    config = only(tiny_config(), 'fgsm')
    config.eval.max_examples = 10
    config.eval.checkpoint = 'latest'
    config.eval.split = 'val'
    config.eval.stop_when_fooled = False
    rows = evaluate(config, trained, progress=False)
    assert {(row.n, row.split) for row in rows} == {(10, 'val')}
    assert 'auroc' in {row.metric for row in rows if row.attack == 'fgsm'}


def test_evaluating_before_training_says_what_to_do(tiny_config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no 'best' checkpoint.*train with this --workdir first"):
        evaluate(tiny_config(), tmp_path / 'new', progress=False)
    assert not (tmp_path / 'new').exists()


def test_reporting_before_evaluating_says_what_to_do(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'run experiments\.evaluate with --workdir'):
        write_report([trained], tmp_path / 'report.html', title='x')
    (trained / 'results.jsonl').write_text('{"dataset": "torn')
    with pytest.raises(ValueError, match='holds no results'):
        gather_rows([trained])
    assert not (tmp_path / 'report.html').exists()


@pytest.mark.long
def test_grades_reach_the_report(tiny_config, tmp_path):
    config = only(tiny_config('natural'), 'smia3')
    config.task.name = 'ordinal'
    config.train.epochs = 0.5
    train_and_evaluate(config, tmp_path, progress=False)
    rows = evaluate(config, tmp_path, progress=False)
    assert 'quadratic_weighted_kappa' in {row.metric for row in rows if row.attack == 'smia3'}
    write_report([tmp_path], tmp_path / 'report.html', title='Grades')
    assert 'quadratic' in (tmp_path / 'report.html').read_text()


@pytest.mark.parametrize('prediction', [0, 1, 2])
def test_pictures_of_every_grade_have_a_confidence(tmp_path, prediction):
    """Three grades have two outputs: the highest grade is no index into them."""
    outputs = np.array([[4., 4.], [4., -4.], [-4., -4.]])[[2 - prediction]]
    shared = {'task': 'ordinal', 'index': [7], 'target': [0], 'clean': np.zeros((1, 4, 4, 1)),
              'clean/outputs': outputs[None], 'clean/prediction': [[prediction]]}
    attack = {'pgd/norm': 'l2', 'pgd/eps': [.5], 'pgd/images': np.zeros((1, 1, 4, 4, 1)),
              'pgd/outputs': outputs[None], 'pgd/prediction': [[prediction]]}
    np.savez(tmp_path / 'pictures.npz', **shared, **attack)
    picture, = pictures_of(tmp_path, title='model')
    assert picture.clean_confidence == pytest.approx(1 / (1 + np.exp(-4)), abs=.02)
    assert 'eps 0.5' in picture.caption, 'a radius in L2 is no multiple of 1/255'


def test_a_validation_metric_that_is_not_measured(tiny_config, tmp_path):
    config = tiny_config('natural')
    config.validation.select_metric = 'robust_acuracy'
    with pytest.raises(ValueError, match="did you mean 'robust_accuracy'"):
        train_and_evaluate(config, tmp_path, progress=False)
