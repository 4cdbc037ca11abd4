"""Saved detectors: the same bits come back, and what does not fit is refused."""
import os

import jax
import numpy as np
import pytest

from medrobust_jax.detectors.registry import DETECTORS, SUPERVISED, create_detector
from medrobust_jax.detectors.threshold import calibrate
from medrobust_jax.evaluate.detector_files import load_detector, save_detector

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 2
IMAGES = RNG.random((60, 4, 4, 1)).astype(np.float32)
FROM = {'checkpoint_fingerprint': 'abc', 'seed': 3}
SMALL = {'lid': {'num_neighbors': 4, 'batch_size': 30}, 'isolation_forest': {'num_trees': 9},
         'gaussian': {'shrinkage': .1}, 'feature_squeezing': {'search': None}}


def model(images):
    flat = images.reshape(images.shape[0], -1)
    return {'logits': flat[:, :2], 'features': flat[:, 4:9] ** 2, 'layers': (flat[:, :3], flat[:, 4:9]),
            'images': images}


def fitted(name, evidence):
    detector = create_detector(name, forward_evidence=model, **SMALL.get(name, {}))
    state = detector.fit(evidence, np.asarray(evidence['logits']).argmax(1), jax.random.key(0))
    return detector, state


@pytest.fixture(scope='module')
def evidence():
    return jax.tree.map(np.asarray, model(IMAGES))


@pytest.mark.parametrize('name', sorted(DETECTORS))
def test_what_is_loaded_scores_to_the_same_bits(name, evidence, tmp_path):
    detector, state = fitted(name, evidence)
    if name in SUPERVISED:
        state = detector.fit_adversarial(state, evidence, model(IMAGES[::-1] ** 2))
    score = jax.jit(detector.score)
    threshold = calibrate(np.asarray(score(state, evidence)))
    path = tmp_path / 'detectors' / f'{name}.npz'
    save_detector(path, name, SMALL.get(name, {}), state, threshold, FROM)
    saved = load_detector(path, checkpoint_fingerprint='abc')
    assert (saved.name, saved.options, saved.threshold, saved.provenance) == (
        name, SMALL.get(name, {}), threshold, FROM)
    assert jax.tree.structure(saved.state) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(saved.state), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)
    again = create_detector(saved.name, forward_evidence=model, **saved.options)
    np.testing.assert_array_equal(jax.jit(again.score)(saved.state, evidence), score(state, evidence))
    assert os.listdir(path.parent) == [path.name]


@pytest.fixture
def path(evidence, tmp_path):
    save_detector(tmp_path / 'gaussian.npz', 'gaussian', {}, fitted('gaussian', evidence)[1], None, FROM)
    return tmp_path / 'gaussian.npz'


def test_an_interval_that_is_undefined_comes_back_so(path):
    threshold = calibrate(np.arange(30.), groups=np.zeros(30))  # a single patient
    save_detector(path, 'gaussian', {}, {}, threshold, FROM)
    back = load_detector(path).threshold
    assert np.isnan([threshold.false_alarms.low, back.false_alarms.low, back.false_alarms.high]).all()
    assert back.false_alarms.method == threshold.false_alarms.method


def test_a_detector_of_another_model_is_refused(path):
    assert load_detector(path).threshold is None
    with pytest.raises(ValueError, match="fitted on the model abc, not on abd: fit the detector 'gaussian' again"):
        load_detector(path, checkpoint_fingerprint='abd')


@pytest.mark.parametrize('keep', [0, 10, .5, .99])
def test_a_truncated_file_is_refused(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[:int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r'gaussian\.npz is (truncated|no npz)'):
        load_detector(path)


def test_flipped_bits_are_found_wherever_they_are(path):
    content, whole = path.read_bytes(), jax.tree.leaves(load_detector(path).state)
    messages = []
    for place in range(40, len(content) - 60, 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1:])
        try:
            state = load_detector(path).state
        except ValueError as error:
            messages.append(str(error))
        else:  # a field of the archive that nothing reads
            assert all(map(np.array_equal, whole, jax.tree.leaves(state)))
    assert len(messages) > 10
    assert all('gaussian.npz' in message for message in messages)


def test_a_changed_array_is_found(path):
    arrays = dict(np.load(path))
    arrays['array0'] = arrays['array0'] + 1
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match='do not match the digest'):
        load_detector(path)


def test_a_missing_or_foreign_file_is_refused(path):
    with pytest.raises(FileNotFoundError, match='no file'):
        load_detector(path.with_name('other.npz'))
    np.savez(path, means=np.zeros(3))
    with pytest.raises(ValueError, match='holds no detector'):
        load_detector(path)


def test_what_fails_to_be_written_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'savez_compressed', full)
    with pytest.raises(OSError, match='No space left'):
        save_detector(path, 'gaussian', {}, {'means': np.zeros(3)}, None, FROM)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(('options', 'state', 'provenance', 'message'), [
    ({}, {}, {}, "provenance must hold 'checkpoint_fingerprint'"),
    ({'forward': len}, {}, FROM, 'plain values'),
    ({}, {'means': 'abc'}, FROM, 'state.means is str'),
    ({}, {'layers': ({3: np.zeros(2)},)}, FROM, r'state.layers\[0\] has keys that are not strings'),
    ({}, {'means': [None]}, FROM, 'state.means is list of object'),
])
def test_what_cannot_be_written_is_refused(tmp_path, options, state, provenance, message):
    with pytest.raises(ValueError, match=message):
        save_detector(tmp_path / 'a.npz', 'gaussian', options, state, None, provenance)
    assert not list(tmp_path.iterdir())
