"""A trained run judged behind preprocessors, certified, and behind a denoiser: rows, names, files, refusals."""
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.base import threat
from experiments import build, preprocessing
from experiments.certify import certify_run
from experiments.evaluate import evaluate
from experiments.report import text_tables
from experiments.rescore import rescore
from experiments.train_denoiser import train_denoiser
from medrobust_jax.data.files import read_npz
from medrobust_jax.evaluate.records import read_rows
from medrobust_jax.evaluate.suite import Examples, check_threat
from medrobust_jax.tasks.classification import classification
from medrobust_jax.train.checkpoint import load_for_evaluation


def behind(config, *chosen, gradient='auto', eot_samples=2, **attacks):
    """The config with preprocessors, at one radius, under FGSM unless `attacks` says otherwise."""
    config.eval.eps = (8 / 255,)
    config.eval.attacks = ConfigDict(attacks or {'fgsm': threat('fgsm')})
    config.eval.preprocess = chosen
    config.eval.preprocess_gradient = gradient
    config.eval.eot_samples = eot_samples
    return config


def test_rows_stand_beside_those_of_the_model_alone(trained, tiny_config):
    evaluate(behind(tiny_config()), trained, progress=False)
    before = (trained / 'verdicts' / 'fgsm.npz').read_bytes()
    squeeze = ('bit_depth', {'bits': 3})
    rows = evaluate(behind(tiny_config(), squeeze), trained, progress=False)
    evaluate(behind(tiny_config(), squeeze, gradient='blocked'), trained, progress=False)
    names = ['pgd_at', 'pgd_at+bit_depth(bits=3)', 'pgd_at+bit_depth(bits=3) [blocked gradient]']
    all_rows = read_rows(trained / 'results.jsonl')
    assert list(dict.fromkeys(row.defense for row in all_rows)) == names
    assert {row.defense for row in rows} == {names[1]}
    for row in rows:
        assert row.provenance['preprocess'] == [{'name': 'bit_depth', 'bits': 3, 'gradient': 'identity'}]
        assert 'eot_samples' not in row.provenance
    assert (trained / 'verdicts' / 'fgsm.npz').read_bytes() == before, "the model's own verdicts are left alone"
    assert (trained / 'preprocessed' / 'pgd_at+bit_depth_bits=3' / 'verdicts' / 'fgsm.npz').is_file()
    assert all(name in text_tables(all_rows) for name in names)
    blocked = [row for row in all_rows if row.defense == names[2] and row.attack == 'fgsm']
    assert any('exactly zero' in warning for warning in blocked[0].warnings), 'the checks see through the control'


def test_a_random_preprocessor_is_attacked_through_its_average(trained, tiny_config):
    config = behind(tiny_config(), ('gaussian_noise', {'sigma': .1}), ('jpeg', {}),
                    fgsm=threat('fgsm'), smia=threat('smia', num_steps=2))
    rows = evaluate(config, trained, progress=False)
    assert {row.defense for row in rows} == {'pgd_at+gaussian_noise(sigma=0.1)+jpeg'}
    attacked = [row for row in rows if row.attack in ('fgsm', 'smia')]
    assert {row.attack_options['eot_samples'] for row in attacked} == {2}
    assert {row.provenance['eot_samples'] for row in rows} == {2}
    assert [each['gradient'] for each in rows[0].provenance['preprocess']] == ['exact', 'identity']
    single = behind(tiny_config(), ('gaussian_noise', {'sigma': .1}), eot_samples=0)
    rows = evaluate(single, trained, progress=False)
    assert {row.defense for row in rows} == {'pgd_at+gaussian_noise(sigma=0.1) [no EOT]'}
    assert all('eot_samples' not in row.attack_options for row in rows)


def test_images_are_scored_again_behind_what_they_were_made_for(trained, tiny_config):
    config = behind(tiny_config(), ('median', {'size': 2}))
    with pytest.raises(FileNotFoundError, match=r'median_size=2.*save_images=True first'):
        rescore(config, trained)
    config.eval.save_images = True
    evaluate(config, trained, progress=False)
    (found,) = rescore(config, trained)
    np.testing.assert_array_equal(found.found, found.again)


def test_attacks_that_cannot_average_are_refused(tiny_config):
    task = classification(4)

    def averaged(**attacks):
        threats = build.build_threats(behind(tiny_config(), **attacks).eval.attacks, task)
        return preprocessing.averaged(threats, task, num_samples=3)

    for refused in (threat('fab'), threat('ddn'), threat('autoattack'), threat('cw_linf')):
        with pytest.raises(ValueError, match=r"config\.eval\.attacks\.it: '\w+' does not average over the draws"):
            averaged(it=refused)
    kept = averaged(pgd=threat('pgd', num_steps=2), rand=threat('autoattack', version='rand'))
    assert kept[0].options['eot_samples'] == 3
    assert 'eot_samples' not in kept[1].options


@pytest.mark.parametrize('name', preprocessing.AVERAGED)
def test_attacks_that_are_said_to_average_do(tiny_config, name):
    task = classification(3)
    threats = build.build_threats({'it': threat(name)}, task)
    (made,) = preprocessing.averaged(threats, task, num_samples=3)
    examples = Examples(np.full((2, 8, 8, 1), .5, np.float32), np.zeros(2, np.int32), np.arange(2))
    forward = lambda variables, images, keys: images.reshape(len(images), -1)[:, :3]  # noqa: E731
    alone, passes = (check_threat(each, task, examples, (.1,), forward=forward, variables=())
                     for each in (threats[0], made))
    assert passes.forward == 4 * alone.forward, 'three samples and the pass without'
    assert passes.backward == (4 if name == 'smia' else 3) * alone.backward  # SMIA's term covers all of them


@pytest.mark.parametrize(('chosen', 'fields', 'message'), [
    (('jpg', {}), {}, "unknown preprocessor in config.eval.preprocess 'jpg'; did you mean 'jpeg'"),
    (('denoisr', {}), {}, "did you mean 'denoiser'"),
    (('jpeg', {'qualty': 1}), {}, "did you mean 'quality'"),
    ('jpeg', {}, "a pair of a name and options, such as"),
    (('denoiser', {}), {}, 'needs the workdir of experiments.train_denoiser'),
    (('denoiser', {'folder': 'x'}), {}, "did you mean|Known: workdir"),
    (('bit_depth', {}), {'preprocess_gradient': 'exact'}, "is zero: choose 'identity'"),
    (('jpeg', {}), {'preprocess_gradient': 'bpda'}, "unknown gradient of a preprocessor 'bpda'"),
    (('jpeg', {}), {'eot_samples': -1}, r'config\.eval\.eot_samples = -1 must be at least 0')])
def test_refusals(tiny_config, chosen, fields, message):
    config = behind(tiny_config(), chosen)
    config.eval.update(fields)
    with pytest.raises(ValueError, match=message):
        preprocessing.preprocessors_of(config)


def test_a_denoiser_is_trained_and_put_before_the_model(trained, tiny_config, tmp_path):
    config = tiny_config('natural')
    folder = tmp_path / 'denoiser'
    result = train_denoiser(config, folder, sigma=.2, options={'depth': 2, 'width': 4}, progress=False)
    assert int(result.state.step) == 4
    assert set(result.best['metrics']) == {'psnr', 'psnr_noisy'}
    again = train_denoiser(config, folder, sigma=.2, options={'depth': 2, 'width': 4}, progress=False)
    assert again.best['step'] == result.best['step']
    judged = behind(tiny_config(), ('denoiser', {'workdir': str(folder)}))
    rows = evaluate(judged, trained, progress=False)
    mark = load_for_evaluation(folder)[2]['checkpoint_fingerprint'][:8]
    assert {row.defense for row in rows} == {f'pgd_at+denoiser(fingerprint={mark})'}, 'no path in a row'
    assert str(folder) not in (trained / 'results.jsonl').read_text()
    with pytest.raises(ValueError, match='holds no denoiser'):
        evaluate(behind(tiny_config(), ('denoiser', {'workdir': str(trained)})), trained, progress=False)
    config.data.augment = (('noise', {'sigma': .1}),)
    with pytest.raises(ValueError, match="adds 'noise'"):
        train_denoiser(config, tmp_path / 'other', sigma=.2)


def test_certificates_reach_rows_and_report(trained, tiny_config):
    config = behind(tiny_config(), ('median', {'size': 2}))
    rows = certify_run(config, trained, sigma=.1, num_samples=50, radii=(0.0, .05, .1), max_examples=16)
    name = 'pgd_at+median(size=2)+smoothing(sigma=0.1, n=50, alpha=0.001)'
    assert {row.defense for row in rows} == {name}
    values = {(row.metric, row.eps): row.value for row in rows}
    assert list(values) == [('accuracy', 0.0), ('abstention_rate', 0.0), ('certified_accuracy', 0.0),
                            ('certified_accuracy', .05), ('certified_accuracy', .1)]
    certified = [values['certified_accuracy', radius] for radius in (0.0, .05, .1)]
    assert certified == sorted(certified, reverse=True)
    assert certified[0] <= values['accuracy', 0.0]
    for row in rows:
        assert (row.n, row.interval, row.forward_passes) == (16, 'wilson', 150)
        assert (row.attack_options['alpha'], row.attack_options['num_samples']) == (.001, 50)
        assert len(row.provenance['checkpoint_fingerprint']) == 64
    saved = read_npz(trained / 'certificates' / 'pgd_at+median_size=2_+smoothing_sigma=0.1_n=50_alpha=0.001.npz')
    np.testing.assert_array_equal((saved['predictions'] == saved['label']).mean(), certified[0])
    again = certify_run(config, trained, sigma=.1, num_samples=50, radii=(0.0, .05, .1), max_examples=16)
    assert [row.value for row in again] == [row.value for row in rows]
    assert len(read_rows(trained / 'results.jsonl')) == len(rows), 'replaced, not doubled'
    assert 'certified accuracy' in text_tables(rows, metric='certified_accuracy')
