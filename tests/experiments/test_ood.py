"""Foreign images made to pass for real ones, on small trained nets: rows, verdicts, pictures, the page."""
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import aasce_shape_rebuild, acdc
from experiments import build
from experiments import ood as experiment
from experiments.compare import compare
from experiments.ood import attack_from_outside, check_starts
from experiments.report import foreign_of, gather_rows, text_tables, write_report
from experiments.train import train_and_evaluate
from medrobust_jax.data.files import read_npz
from medrobust_jax.evaluate.verdicts import load_verdicts
from medrobust_jax.evaluate.writing import Subject
from medrobust_jax.report.foreign import foreign_figure
from medrobust_jax.report.summary import headline_panels

MEASURES = {'output_dice', 'output_point_distance', 'reached', 'reconstruction_auroc'}


def shapes():
    """The smallest run of a net for shapes that reconstructs its input."""
    config = aasce_shape_rebuild.get_config('natural')
    config.train.update({'batch_size': 8, 'epochs': 3.0, 'eval_every_epochs': 3.0, 'checkpoint_every_epochs': 3.0})
    config.validation.update({'num_steps': 1, 'max_examples': 8})
    config.eval.update({'max_examples': 5, 'chunk': 16, 'block_width': 2, 'seed': 3})
    config.data.name, config.data.augment = 'spine_phantom', ()
    config.data.options = ConfigDict({'size': (32, 16), 'num_examples': 32, 'num_vertebrae': 17, 'mask': True})
    config.model.options.update({'width': 4, 'stage_sizes': (1, 1)})
    return config


def masks(config, workdir, data_dir=None):
    """`subject_of` of a model that takes what is bright for the structure."""
    source = build.load_split(config, 'test', None)
    task = build.build_task(config, source.info)

    def forward(variables, images, keys):
        bright = variables * (images - .5)
        return jnp.concatenate([-bright, bright, jnp.full_like(bright, -20), jnp.full_like(bright, -20)], axis=-1)

    fingerprints = dict.fromkeys(('config_fingerprint', 'checkpoint_fingerprint', 'dataset_fingerprint'), 'x')
    identity = {'dataset': 'cardiac_phantom', 'split': 'test', 'model': 'm', 'defense': 'natural', 'seed': 0}
    subject = Subject(forward, jnp.asarray(10.), task, identity, fingerprints)
    return subject, build.examples_of(source, task, 5), task


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A shape net that reconstructs its input, attacked from noise and from another data set."""
    workdir = tmp_path_factory.mktemp('shapes')
    train_and_evaluate(shapes(), workdir, progress=False)
    rows = attack_from_outside(shapes(), workdir, starts=('noise', 'cardiac_phantom'), num_steps=30, rho=4.,
                               num_pictures=2, progress=False)
    return workdir, rows


def of(rows, metric, attack='ood_noise'):
    return {row.eps: row.value for row in rows if (row.metric, row.attack) == (metric, attack)}


@pytest.mark.slow
def test_rows_hold_the_control_and_what_was_reached(trained):
    workdir, rows = trained
    assert {(row.attack, row.norm, row.eps) for row in rows} == {
        (attack, 'l2', eps) for attack in ('ood_noise', 'ood_cardiac_phantom') for eps in (0., 4.)}
    assert {row.metric for row in rows} == MEASURES
    assert {row.metric: row.n for row in rows} == dict.fromkeys(MEASURES, 5)
    assert not [row.warnings for row in rows if row.warnings], 'in ball and box, and as scored before'
    assert {(row.eps, row.forward_passes, row.backward_passes) for row in rows} == {(0, 1, 0), (4, 31, 30)}
    assert gather_rows([workdir]) == rows
    assert [row.attack_options['start_fingerprint'] == '' for row in rows] == [
        row.attack == 'ood_noise' for row in rows]


@pytest.mark.slow
def test_the_images_found_are_in_ball_and_box_and_nearer_in_outputs(trained):
    workdir, rows = trained
    kept = read_npz(workdir / 'ood.npz')
    for name in ('ood_noise', 'ood_cardiac_phantom'):
        away = (kept[f'{name}/found'] - kept[f'{name}/start']).astype(float).reshape(2, -1)
        assert (np.linalg.norm(away, axis=1) <= 4 * (1 + 1e-5)).all()
        assert (abs(kept[f'{name}/found'] - .5) <= .5).all()
        verdicts = load_verdicts(workdir / 'verdicts' / f'{name}.npz')
        assert (verdicts.loss[1] > verdicts.loss[0]).all()
        assert 1 - of(rows, 'output_dice', name)[4.] == pytest.approx(verdicts.quality[1].mean())
        assert of(rows, 'reached', name)[0.] == (~verdicts.acceptable[0]).mean()


@pytest.mark.slow
def test_more_steps_are_never_farther_and_no_ball_changes_nothing(trained, tmp_path):
    workdir, rows = tmp_path / 'again', trained[1]
    shutil.copytree(trained[0], workdir)
    before = load_verdicts(workdir / 'verdicts' / 'ood_noise.npz')
    arguments = {'starts': ('noise',), 'num_steps': 3, 'num_pictures': 0, 'progress': False}
    attack_from_outside(shapes(), workdir, rho=4., **arguments)
    fewer = load_verdicts(workdir / 'verdicts' / 'ood_noise.npz')
    none = attack_from_outside(shapes(), workdir, rho=0., **arguments)
    kept = {name.partition('/')[0] for name in read_npz(workdir / 'ood.npz')}
    assert kept == {'ood_noise', 'ood_cardiac_phantom'}
    np.testing.assert_array_equal(fewer.loss[0], before.loss[0])
    assert (before.loss[1] >= fewer.loss[1]).all()
    assert {row.metric for row in none if row.value == of(rows, row.metric)[0.]} == MEASURES


@pytest.mark.slow
def test_the_page_tells_of_it_apart_from_robustness(trained, tmp_path):
    workdir, rows = trained
    write_report([workdir], tmp_path / 'page.html', title='t')
    page = (tmp_path / 'page.html').read_text()
    assert 'Out of distribution' in page
    assert page.count('<img') == 4
    for absent in ('id="results"', 'id="curves"', 'Under attack:'):
        assert absent not in page, absent
    assert headline_panels(rows) == []
    assert 'attacked, L2 4' in text_tables(rows)
    scenes = foreign_of(workdir, title='natural')
    assert len(scenes) == 4
    assert ['An image of cardiac_phantom (left)' in scene.caption for scene in scenes].count(True) == 2
    assert [axes.get_title() for axes in foreign_figure(scenes[0]).axes][:3] == [
        'start image', 'changed image', 'change']


@pytest.mark.slow
def test_the_verdicts_compare_like_others(trained):
    workdir, rows = trained
    same = compare([[workdir], [workdir]], attacks=('ood_noise',))
    assert {(row['attack'], row['eps'], row['difference']) for row in same} == {
        ('ood_noise', 0., 0), ('ood_noise', 4., 0)}
    pair = compare([[workdir]], pair=('ood_noise', 'ood_cardiac_phantom'))
    reached = {row['eps']: row['difference'] for row in pair if row['measure'] == 'quality'}
    assert reached[4.] == pytest.approx(of(rows, 'output_dice', 'ood_cardiac_phantom')[4.]
                                        - of(rows, 'output_dice')[4.])


def test_label_maps_are_attacked_with_the_papers_radius_and_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, 'STEPS', (40, 0))
    monkeypatch.setattr(experiment, 'subject_of', masks)
    config = acdc.get_config('natural')
    config.data.name, config.data.size = 'cardiac_phantom', 16
    config.data.options = ConfigDict({'num_examples': 8})
    config.eval.update({'chunk': 16, 'block_width': 2})
    rows = attack_from_outside(config, tmp_path, starts=('gaussian',), progress=False)
    assert {row.metric for row in rows} == {'output_dice', 'reached'}
    assert {row.eps for row in rows} == {0., 20 * 16 / 128}
    assert {row.attack_options['num_steps'] for row in rows} == {40}
    dice = of(rows, 'output_dice', 'ood_gaussian')
    assert dice[2.5] > dice[0.] + .1
    scene = foreign_of(tmp_path, title='t')[0]
    assert scene.wanted.points is None
    foreign_figure(scene)


def test_starts_that_make_no_sense_are_refused(tmp_path):
    for starts, message in (((), 'at least one'), (('noise', 'noise'), 'each once'),
                            (('acdc',), "made for images of 'acdc'")):
        with pytest.raises(ValueError, match=message):
            check_starts(starts, own='acdc')
    with pytest.raises(FileNotFoundError):
        attack_from_outside(shapes(), tmp_path, starts=('noise',), progress=False)


@pytest.mark.slow
def test_a_radius_below_zero_is_refused(trained):
    with pytest.raises(ValueError, match=r'rho = -1\.0 must be finite and >= 0'):
        attack_from_outside(shapes(), trained[0], starts=('noise',), rho=-1., progress=False)
