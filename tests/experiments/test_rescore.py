"""Saved images scored again, transfer from another run, and an evaluation that was killed."""
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.base import threat
from experiments.evaluate import evaluate
from experiments.rescore import compare, describe, rescore
from medrobust_jax.evaluate.judge import records
from medrobust_jax.evaluate.verdicts import load_verdicts


def saving(config):
    config.eval.attacks = ConfigDict({'fgsm': threat('fgsm')})
    config.eval.save_images = True
    return config


def test_saved_images_keep_their_verdicts(trained, tiny_config, tmp_path):
    config = saving(tiny_config())
    with pytest.raises(FileNotFoundError, match='save_images=True first'):
        rescore(config, trained)
    evaluate(config, trained, progress=False)
    found = rescore(config, trained)
    assert [(r.attack, len(r.index)) for r in found] == [('fgsm', 32)] * 2
    assert all(line.endswith('0 of 32 verdicts change') for line in describe(found))
    assert all('0 of 32 verdicts differ; 0 still do' in line for line in compare(found, found))
    path = trained / 'adversarial' / 'fgsm.npz'
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    images = arrays['images'].copy()
    images[0, 0] += .5 * (images[0, 0] < .5)
    np.savez(path, **{**arrays, 'images': images, 'acceptable': ~arrays['acceptable']})
    line = next(describe(rescore(config, trained)))
    assert '32 of 32 verdicts change' in line
    assert '1 adversarial images leave the linf ball' in line
    lines = list(compare(found, rescore(config, trained)))
    assert '32 of 32 verdicts differ (rows 0, 1, 2' in lines[0]
    np.savez(path, **{**arrays, 'checkpoint_fingerprint': np.asarray('other')})
    with pytest.raises(ValueError, match='made for another checkpoint'):
        rescore(config, trained)
    path.write_bytes(b'no npz')
    with pytest.raises(ValueError, match=r'fgsm\.npz is damaged'):
        rescore(config, trained)


def test_transfer_from_another_run_is_judged_with_the_rest(trained, tiny_config):
    """Crafted on the very model that is judged, transfer is PGD with one submission."""
    config = tiny_config()
    config.eval.attacks = ConfigDict({'pgd3': threat('pgd', num_steps=3)})
    config.eval.surrogate, config.eval.surrogate_steps = str(trained), 3
    rows = evaluate(config, trained, progress=False)
    assert {row.attack for row in rows} == {'clean', 'pgd3', 'transfer_pgd_at', 'worst_case'}
    pgd, moved = (load_verdicts(trained / 'verdicts' / f'{name}.npz') for name in ('pgd3', 'transfer_pgd_at'))
    np.testing.assert_array_equal(pgd.acceptable, moved.acceptable)
    assert moved.about['surrogate'] == 'pgd_at'


def test_a_misspelled_ensemble_is_refused_before_anything_is_run(trained, tiny_config):
    config = tiny_config()
    config.eval.ensemble = 'autoatack'
    with pytest.raises(ValueError, match='unknown attack'):
        evaluate(config, trained, progress=False)
    assert not (trained / 'results.jsonl').exists()


def test_a_killed_evaluation_goes_on(trained, tiny_config, monkeypatch):
    """The second attack dies before its rows are written; the same command ends with the same rows."""
    config = tiny_config()
    config.eval.attacks = ConfigDict({'fgsm': threat('fgsm'), 'pgd3': threat('pgd', num_steps=3, num_restarts=2)})
    expected = {(r.attack, r.eps, r.metric): r.value for r in evaluate(config, trained, progress=False)}
    (trained / 'results.jsonl').unlink()
    written, calls = records.update_rows, []

    def dying(path, rows):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return written(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(records, 'update_rows', dying)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, trained, progress=False)
    assert {row.attack for row in records.read_rows(trained / 'results.jsonl')} == {'clean', 'fgsm'}
    again = {(r.attack, r.eps, r.metric): r.value for r in evaluate(config, trained, progress=False)}
    assert repr(again) == repr(expected)
    assert not (trained / 'unfinished').exists()
