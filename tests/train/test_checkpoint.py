"""Checkpoints: what is kept, what is refused, what damage does."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medrobust_jax.parallel.mesh import data_mesh, replicated
from medrobust_jax.train.checkpoint import Checkpoints, load_for_evaluation
from medrobust_jax.train.fingerprints import fingerprint
from medrobust_jax.train.state import TrainState

CONFIG = {'model': 'mlp', 'attack': {'name': 'pgd', 'eps': 0.03, 'sizes': (1, 2)}}


def make_state(step, *, ema=True, mesh=None):
    params = {'dense': {'kernel': jnp.full((3, 2), float(step)), 'bias': jnp.arange(2.0) + step}}
    model_state = {'mean': jnp.full(2, 2.0 * step)}
    optimizer = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(optax.constant_schedule(0.1)))
    average = jax.tree.map(lambda leaf: leaf + 100, (params, model_state)) if ema else None
    state = TrainState(jnp.int32(step), params, model_state, optimizer.init(params), average, ())
    return jax.device_put(state, replicated(mesh or data_mesh()))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def damage(folder: Path, how: str):
    """Spoils every data file under `folder`."""
    for path in [path for path in folder.rglob('*') if path.is_file() and path.parent.name == 'd']:
        content = path.read_bytes()
        flipped = bytes([content[-1] ^ 1])
        path.write_bytes(content[:len(content) // 2] if how == 'cut' else content[:-1] + flipped)


@pytest.mark.parametrize('ema', [True, False])
def test_a_state_comes_back_whole_on_the_devices(tmp_path, ema):
    state = make_state(7, ema=ema)
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        assert checkpoints.restore_latest(state) is None
        checkpoints.save(7, state)
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        restored = checkpoints.restore_latest(make_state(0, ema=ema))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_equal(restored, state)
    assert restored.params['dense']['kernel'].sharding == replicated(data_mesh())


def test_saving_copies_before_the_buffers_are_reused(tmp_path):
    state = make_state(1)
    bump = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(5):
            state = bump(state)
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        assert_equal(checkpoints.restore_latest(state), make_state(1))


def test_best_and_latest_are_kept_apart(tmp_path):
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        for step in (10, 20, 30, 40):
            state = make_state(step)
            if step in (10, 20):
                checkpoints.save_best(step, *state.evaluation_variables(), metadata={'metrics': {'robust': step}})
            checkpoints.save(step, state)
    assert {int(path.name) for path in (tmp_path / 'checkpoints/latest').iterdir()} == {30, 40}
    assert [path.name for path in (tmp_path / 'checkpoints/best').iterdir()] == ['20']
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        assert checkpoints.best_metadata()['metrics'] == {'robust': 20}
        assert int(checkpoints.restore_latest(make_state(0)).step) == 40
    for which, step in (('best', 20), ('latest', 40)):
        params, model_state, metadata = load_for_evaluation(tmp_path, which)
        averages = make_state(step).evaluation_variables()
        assert_equal((params, model_state), averages)
        assert metadata['step'] == step
        assert metadata['checkpoint_fingerprint'] == fingerprint({'params': params, 'model_state': model_state})
        assert metadata['config'] == json.loads(json.dumps(CONFIG))


def test_an_earlier_best_can_replace_a_later_one(tmp_path):
    """A run resumed from step 15 on another machine may find its best earlier than the first run did."""
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.save_best(20, {'w': jnp.ones(2)}, {})
        checkpoints.save_best(16, {'w': jnp.zeros(2)}, {})
    params, model_state, metadata = load_for_evaluation(tmp_path)
    assert metadata['step'] == 16
    assert model_state == {}
    np.testing.assert_array_equal(params['w'], 0)


@pytest.mark.parametrize('how', ['cut', 'flip', 'foreign'])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, how, caplog):
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, make_state(step))
    newest = tmp_path / 'checkpoints/latest/20'
    if how == 'foreign':
        (newest / 'metadata/metadata').write_text('{"epoch": 3}')
    else:
        damage(newest, how)
    _, _, metadata = load_for_evaluation(tmp_path, 'latest')
    assert metadata['step'] == 10
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        restored = checkpoints.restore_latest(make_state(0))
        assert_equal(restored, make_state(10))
        assert 'checkpoint of step 20' in caplog.text
        checkpoints.save(20, make_state(20))  # its step is free again
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        assert int(checkpoints.restore_latest(make_state(0)).step) == 20
    assert [path.name for path in (tmp_path / 'checkpoints/unreadable').iterdir()] == ['latest-20-0']


def test_where_no_checkpoint_is_whole_nothing_is_thrown_away(tmp_path):
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.save(10, make_state(10))
        checkpoints.save_best(10, {'w': jnp.ones(2)}, {})
    damage(tmp_path, 'cut')
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        with pytest.raises(ValueError, match=r'none of the checkpoints in .* \(steps \[10\]'):
            checkpoints.restore_latest(make_state(0))
        assert checkpoints.best_metadata() is None
    assert (tmp_path / 'checkpoints/latest/10').is_dir()


def test_stray_files_are_passed_over(tmp_path):
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.save(10, make_state(10))
    (tmp_path / 'checkpoints/latest/notes.txt').write_text('mine')
    (tmp_path / 'checkpoints/latest/old').mkdir()
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        assert int(checkpoints.restore_latest(make_state(0)).step) == 10


def test_another_config_is_refused_with_the_fields(tmp_path):
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.save(10, make_state(10))
        checkpoints.save_best(10, {'w': jnp.ones(2)}, {})
    other = {'model': 'mlp', 'attack': {'name': 'pgd', 'eps': 0.06, 'sizes': [1, 2]}, 'seed': 3}
    with Checkpoints(tmp_path, config=other) as checkpoints:
        for call in (lambda: checkpoints.restore_latest(make_state(0)), checkpoints.best_metadata):
            with pytest.raises(ValueError, match=r'(?s)attack.eps: 0.03 -> 0.06\n  seed: \(absent\) -> 3'):
                call()


def test_nothing_to_load_says_where_it_looked(tmp_path):
    with pytest.raises(FileNotFoundError, match='train with this --workdir first'):
        load_for_evaluation(tmp_path)
    with Checkpoints(tmp_path, config=CONFIG):
        pass
    with pytest.raises(FileNotFoundError, match='not saved one yet'):
        load_for_evaluation(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'latest'"):
        load_for_evaluation(tmp_path, 'lates')


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / 'checkpoints').write_text('in the way')
    with pytest.raises(OSError, match='cannot write under'):
        Checkpoints(tmp_path, config=CONFIG)


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        def full(*args, **kwargs):
            raise ValueError('RESOURCE_EXHAUSTED: No space left on device')
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._latest, 'save', full)
            with pytest.raises(OSError, match=r'No space left on device\. Free space there'):
                checkpoints.save(10, make_state(10))
        checkpoints.save(10, make_state(10))
    assert (tmp_path / 'checkpoints/latest/10').is_dir()
