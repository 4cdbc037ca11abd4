"""A classifier with detectors, from data to the risk page: trained, fitted, attacked, killed and gone on with."""
from types import SimpleNamespace as Fake

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import acdc, oct_phantom
from configs.base import threat
from experiments import compare_systems, fitted_detectors, system
from experiments.attacked_systems import _guides
from experiments.fitted_detectors import Known, reads_labels
from experiments.report import write_report
from experiments.train import train_and_evaluate
from medrobust_jax.data.few_labels import few_labels
from medrobust_jax.data.registry import load
from medrobust_jax.detectors.detector import Detector
from medrobust_jax.evaluate.detector_files import load_detector
from medrobust_jax.evaluate.records import read_rows
from medrobust_jax.evaluate.system_outcomes import check_comparable, load_outcomes

GRID = (1 / 255, 8 / 255)
pytestmark = pytest.mark.slow


def tiny():
    config = oct_phantom.get_config('natural')
    config.data.options = ConfigDict({'num_examples': 96})
    config.model.options = ConfigDict({'stage_sizes': (1,), 'width': 8, 'stem': 'strided'})
    config.train.update({'batch_size': 32, 'epochs': 4.0, 'eval_every_epochs': 4.0,
                         'checkpoint_every_epochs': 4.0})
    config.validation.update({'num_steps': 1, 'max_examples': 32})
    config.eval.update({'max_examples': 24, 'block_width': 8, 'chunk': 32, 'eps': GRID, 'num_pictures': 1})
    config.eval.attacks = ConfigDict({'pgd4': threat('pgd', num_steps=4)})
    config.eval.system.update({'attacks': ('pgd4',), 'aware_steps': 4, 'aware_rounds': 2, 'num_guides': 1,
                               'detectors': (('gaussian', {'grouping': 'none', 'shrinkage': .1}),
                                             ('lid', {'num_neighbors': 5, 'batch_size': 20}),
                                             ('isolation_forest', {'num_trees': 5}))})
    return config


@pytest.fixture(scope='module')
def judged(tmp_path_factory):
    """A workdir that one command filled."""
    workdir = tmp_path_factory.mktemp('system')
    report = system.run(tiny(), workdir)
    return workdir, report, read_rows(workdir / system.ROWS)


def value_of(rows, defense, attack, eps, metric):
    found, = [row.value for row in rows
              if (row.defense, row.attack, row.eps, row.metric) == (defense, attack, eps, metric)]
    return found


def guides_of(rows, defense):
    found, = {row.attack_options['num_guides'] for row in rows if (row.defense, row.attack) == (defense, 'aware')}
    return found


def test_every_system_is_judged_by_who_knows_it_and_who_does_not(judged):
    _, _, rows = judged
    systems = {row.defense for row in rows}
    assert systems == {'natural', 'natural+gaussian', 'natural+lid', 'natural+isolation_forest'}
    for name in systems:
        attacks = {row.attack for row in rows if row.defense == name}
        assert attacks == {'clean', 'pgd4', 'worst_unaware', 'aware', 'worst_case'}
        for eps in GRID:
            risk = {attack: value_of(rows, name, attack, eps, 'risk_system') for attack in attacks - {'clean'}}
            assert risk['worst_case'] >= max(risk.values())
            assert risk['worst_case'] <= value_of(rows, name, 'worst_case', eps, 'risk_classifier')
    for eps in GRID:
        assert value_of(rows, 'natural', 'worst_case', eps, 'risk_system') == value_of(
            rows, 'natural', 'worst_case', eps, 'risk_classifier'), 'no detector: every wrong answer arrives'
    assert {row.n for row in rows if row.metric == 'risk_system'} == {24}


def test_thresholds_keep_their_promise_and_stand_in_the_rows(judged):
    workdir, _, rows = judged
    about = next(row.provenance['detector'] for row in rows if row.defense == 'natural+gaussian')
    saved = load_detector(workdir / 'detectors' / 'gaussian.npz')
    assert about['tau'] == saved.threshold.tau
    assert saved.threshold.false_alarms.value <= .05
    assert about['options'] == {'grouping': 'none', 'shrinkage': .1}


def test_a_detection_rate_never_stands_alone(judged):
    _, report, rows = judged
    for row in rows:
        if row.metric == 'detection_auroc':
            assert any(other.defense == row.defense and other.attack == 'aware' for other in rows)
    page = report.read_text()
    assert 'Risk of the whole system' in page
    assert 'wrong answers reach the clinic' in page


def test_systems_are_compared_image_by_image(judged):
    workdir, _, rows = judged
    systems = load_outcomes(workdir)
    for label, kept in systems.items():
        for eps, worst in zip(kept.eps, kept.worst, strict=True):
            assert worst.reached.mean() == value_of(rows, label, 'worst_case', eps, 'risk_system')
    found = compare_systems.compare_systems([workdir], 'natural+gaussian')
    assert {(row['second'], row['eps']) for row in found} == {
        (label, eps) for label in systems if label != 'natural+gaussian' for eps in GRID}
    for row in found:
        assert row['difference'] == pytest.approx(row['first_value'] - row['second_value'])
    table = compare_systems.table_of(found)
    assert table.lines[0][0] == 'natural+gaussian'
    assert len(table.lines) == 4
    with pytest.raises(ValueError, match=r"did you mean 'natural\+gaussian'"):
        compare_systems.compare_systems([workdir], 'natural+gausian')
    with pytest.raises(ValueError, match='comes twice'):
        compare_systems.compare_systems([workdir, workdir], 'natural')
    changed = systems['natural']._replace(settings={**systems['natural'].settings, 'seed': 9})
    with pytest.raises(ValueError, match='differ in seed'):
        check_comparable([systems['natural'], changed])


def test_what_is_judged_is_not_judged_again(judged, monkeypatch):
    workdir, _, rows = judged

    def refuse(*args, **kwargs):
        raise AssertionError('judged again')

    monkeypatch.setattr(system.systems, 'aware_attack', refuse)
    monkeypatch.setattr(system.systems, 'blind_attack', refuse)
    assert system.judge_systems(tiny(), workdir) == rows
    # A row that is lost is made again, by the detector that was saved.
    keep = [row for row in rows if row.defense != 'natural+gaussian']
    (workdir / system.ROWS).unlink()
    system.update_rows(workdir / system.ROWS, keep)
    with pytest.raises(AssertionError, match='judged again'):
        system.judge_systems(tiny(), workdir)
    system.update_rows(workdir / system.ROWS, rows)


def test_several_systems_make_one_report(judged, tmp_path):
    workdir, _, _ = judged
    rows = write_report([workdir], tmp_path / 'page.html', title='x')
    assert not {row.metric for row in rows} & {'risk_system'}, 'risks stay out of the robustness tables'


def test_other_settings_are_judged_anew(judged, monkeypatch):
    workdir, _, rows = judged
    calls = []
    real = system.systems.aware_attack
    monkeypatch.setattr(system.systems, 'aware_attack', lambda *a, **k: calls.append(1) or real(*a, **k))
    config = tiny()
    config.eval.system.update({'aware_steps': 3, 'attacks': ('fgsm',)})
    config.eval.attacks.fgsm = threat('fgsm')
    monkeypatch.setattr(system.systems, 'without_guides', lambda labels, predictions: [0])  # names one class only
    config.eval.system.detectors = (('gaussian', {'grouping': 'none', 'shrinkage': .1}),)
    again = system.judge_systems(config, workdir)
    assert len(calls) == 2, 'the model alone, and its one detector'
    changed = {row.defense for row in again if row.provenance['settings']['system']['aware_steps'] == 3}
    assert changed == {'natural', 'natural+gaussian'}
    for name in changed:
        assert {row.attack for row in again if row.defense == name} == {
            'clean', 'fgsm', 'worst_unaware', 'aware', 'worst_case'}, 'what is in no worst case now is not shown'
    assert {row.attack for row in again if row.defense == 'natural+lid'} == {
        row.attack for row in rows if row.defense == 'natural+lid'}, 'other systems stay as they were'
    assert {guides_of(rows, name) for name in changed} == {1}
    assert {guides_of(again, name) for name in changed} == {0}, 'rows say what was done, not what was asked for'
    (workdir / system.ROWS).unlink()
    system.update_rows(workdir / system.ROWS, rows)


def test_images_of_another_model_meet_the_system(judged):
    workdir, _, rows = judged
    config = tiny()
    config.eval.surrogate, config.eval.surrogate_steps = str(workdir), 4
    config.eval.system.detectors = (('gaussian', {'grouping': 'none', 'shrinkage': .1}),)
    again = system.judge_systems(config, workdir)
    for name in ('natural', 'natural+gaussian'):
        crafted = {row.eps for row in again if (row.defense, row.attack) == (name, 'transfer_natural')}
        assert crafted == set(GRID)
    # The surrogate is the model itself here: what it crafts is as strong as the attack on the model.
    assert value_of(again, 'natural', 'transfer_natural', GRID[1], 'risk_system') >= value_of(
        again, 'natural', 'clean', 0., 'risk_system')
    system.update_rows(workdir / system.ROWS, rows)


def test_a_detector_that_cannot_be_fitted_does_not_stop_the_others(judged):
    workdir, _, rows = judged
    config = tiny()
    config.eval.system.detectors = (('lid', {'num_neighbors': 5, 'batch_size': 95}),
                                    ('isolation_forest', {'num_trees': 5}))
    with pytest.raises(ValueError, match=r'could not be fitted to this model: lid \('):
        system.judge_systems(config, workdir)
    assert {row.defense for row in read_rows(workdir / system.ROWS)} == {row.defense for row in rows}


def test_detectors_are_given_no_labels_that_the_model_was_not_given():
    assert reads_labels('kernel_density', {})
    assert reads_labels('mahalanobis', {})
    assert not reads_labels('kernel_density', {'grouping': 'predicted'})
    assert not reads_labels('gaussian', {})
    asked = []

    def fit(evidence, labels, key):
        asked.append((evidence['rows'], labels))
        return {}

    images = load('oct_phantom', 'train', num_examples=40)
    few = few_labels(images, .2, seed=0)
    known = Known(None, lambda images, rows: {'rows': rows}, None, images, few, images, seed=0, max_fit=10)
    detector = Detector('x', fit, None, differentiable=True)
    fitted_detectors._fit(detector, known, with_labels=True)
    fitted_detectors._fit(detector, known, with_labels=False)
    (with_labels, labels), (without, nothing) = asked
    assert len(with_labels) == len(labels) == len(few)
    assert nothing is None
    assert len(without) == 10
    assert without.max() > 10, 'drawn from the whole source, which may be sorted by class'


def test_what_cannot_be_judged_is_refused(judged, tmp_path):
    workdir, _, _ = judged
    config = tiny()
    config.eval.system.attacks = ('pgd5',)
    config.eval.eps = (2 / 255,)
    with pytest.raises(ValueError, match=r'names pgd5, which config\.eval\.attacks lacks: it has pgd4'):
        system.judge_systems(config, workdir)
    config = tiny()
    config.eval.attacks.pgd4.options.norm = 'l2'
    with pytest.raises(ValueError, match='pgd4 cannot serve; single Linf attacks'):
        system.run(config, tmp_path / 'never')
    assert not (tmp_path / 'never').exists(), 'refused before anything is trained'
    config.eval.attacks.pgd4 = threat('ddn', num_steps=4)  # whose norm no option names
    with pytest.raises(ValueError, match='pgd4 cannot serve; single Linf attacks'):
        system.check_system(config)
    config = tiny()
    config.eval.system.detectors = (('gaussian', {}), ('gaussian', {'tied': True}))
    with pytest.raises(ValueError, match='each name once'):
        system.judge_systems(config, workdir)
    config = tiny()
    config.eval.system.detectors = (('gausian', {}),)
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        system.judge_systems(config, workdir)
    dense = acdc.get_config()
    dense.data.name, dense.data.size = 'cardiac_phantom', 16
    dense.data.options = ConfigDict({'num_examples': 8})
    dense.model.options = ConfigDict({'width': 4, 'depth': 2})
    dense.train.update({'batch_size': 8, 'epochs': 1.0})
    dense.validation.update({'num_steps': 1, 'max_examples': 4})
    train_and_evaluate(dense, tmp_path, progress=False)
    with pytest.raises(ValueError, match="on classification, not on 'segmentation'"):
        system.judge_systems(dense, tmp_path)


@pytest.mark.parametrize(('field', 'value', 'message'), [
    ('false_alarm_rate', 5., r'system\.false_alarm_rate = 5\.0 must lie in \[0, 1\)'),
    ('false_alarm_rate', float('nan'), r'system\.false_alarm_rate = nan must lie'),
    ('aware_rounds', 0, r'config\.eval\.system\.aware_rounds = 0 must be at least 1'),
    ('aware_steps', 0, r'config\.eval\.system\.aware_steps = 0 must be at least 1'),
    ('num_guides', -1, r'config\.eval\.system\.num_guides = -1 must be at least 0'),
    ('max_fit', 0, r'config\.eval\.system\.max_fit = 0 must be at least 1'),
    ('detectors', (('gausian', {}),), r"system\.detectors, gausian: unknown .* did you mean 'gaussian'"),
    ('detectors', (('gaussian', {'shrinkge': 1}),), r"system\.detectors, gaussian: .* did you mean 'shrinkage'"),
    ('detectors', (('gaussian', {'shrinkage': 'x'}),), r'config\.eval\.system\.detectors, gaussian: '),
    ('detectors', ('gaussian', {}), r'system\.detectors = .* must be pairs of a name and options')])
def test_settings_out_of_range_are_refused_before_training(field, value, message):
    config = tiny()
    with config.ignore_type():
        config.eval.system[field] = value
    with pytest.raises(ValueError, match=message):
        system.check_system(config)


def test_every_detector_is_made_without_a_model():
    config = tiny()
    config.eval.system.detectors = oct_phantom.get_config('natural').eval.system.detectors
    assert len(config.eval.system.detectors) == 8
    system.check_system(config)


def test_only_a_model_of_one_class_goes_without_guides():
    """Any other failure would weaken the aware attack without a word."""
    logits = np.eye(2)[[0, 0, 1]]
    seen = {'features': np.arange(6.).reshape(3, 2), 'logits': logits}
    bench = Fake(config=tiny(), examples=Fake(targets=np.array([0, 1])))
    guides = _guides(bench, None, np.zeros((2, 2)), Fake(seen_images=Fake(evidence=seen)))
    assert guides.shape == (2, 1, 2)
    one_class = {**seen, 'logits': np.eye(2)[[0, 0, 0]]}
    assert _guides(bench, None, np.zeros((2, 2)), Fake(seen_images=Fake(evidence=one_class))) is None
    bench.config.eval.system.num_guides = -1
    with pytest.raises(ValueError, match='count = -1 guides'):
        _guides(bench, None, np.zeros((2, 2)), Fake(seen_images=Fake(evidence=seen)))
