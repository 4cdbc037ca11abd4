"""The loop on a linear model: what is written, saved, selected and refused."""
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medrobust_jax.core.types import Defense
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.train.checkpoint import load_for_evaluation
from medrobust_jax.train.loop import fit
from medrobust_jax.train.optim import create_optimizer
from medrobust_jax.train.state import create_state
from medrobust_jax.train.writer import read_rows

NUM_TRAIN, IMAGE = 24, (2, 2, 1)


def linear(params, model_state, images, *, batch_norm):
    return images.reshape(len(images), -1) @ params['w'], model_state


def loss(forward, params, model_state, state, batch, crafted, step, keys):
    logits, model_state = forward(params, model_state, crafted, batch_norm='train')
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']), (model_state, {})


STANDARD = Defense(init=lambda num_train, outputs, key: {'epochs': jnp.zeros(())},
                   craft=lambda forward, params, model_state, state, batch, step, keys: batch['image'],
                   loss=loss, update=lambda state, batch, crafted, metrics: state,
                   end_epoch=lambda state, epoch: {'epochs': state['epochs'] + epoch})


def batches(start):
    step = start
    while True:
        generator = np.random.default_rng(step)
        yield {'image': generator.uniform(size=(8, *IMAGE)).astype(np.float32),
               'label': generator.integers(0, 2, 8).astype(np.int32),
               'mask': np.arange(8) < (5 if step % 3 == 2 else 8),
               'index': generator.permutation(NUM_TRAIN)[:8].astype(np.int32)}
        step += 1


def run(workdir, scores=None, **changes):
    """Fits 12 steps in epochs of 3; the validation score of step 4k is `scores[k - 1]`."""
    mesh, seen = data_mesh(jax.devices()[:1]), iter(scores or (0.1, 0.3, 0.2))
    optimizer = changes.pop('optimizer', create_optimizer('sgd', 0.1))
    state = create_state(linear, {'w': jnp.zeros((4, 2))}, {}, STANDARD, optimizer, num_train=NUM_TRAIN,
                         image_shape=IMAGE, seed=0, mesh=mesh)
    options = dict(train_batches=batches, steps=12, steps_per_epoch=3, select_metric='robust_accuracy',
                   evaluate_fn=lambda params, model_state: {'robust_accuracy': next(seen), 'accuracy': 1},
                   eval_every=4, checkpoint_every=5, log_every=3, config_dict={'lr': 0.1}, progress=False)
    return fit(state, forward=linear, defense=STANDARD, optimizer=optimizer, workdir=workdir, seed=0, mesh=mesh,
               **(options | changes))


def test_a_whole_run(tmp_path):
    result = run(tmp_path)
    assert int(result.state.step) == 12
    assert float(result.state.defense_state['epochs']) == 1 + 2 + 3 + 4
    assert result.best == {'step': 8, 'metrics': {'robust_accuracy': 0.3, 'accuracy': 1.0}}
    rows = read_rows(tmp_path / 'metrics.jsonl')
    assert [row['step'] for row in rows if 'train/loss' in row] == [3, 4, 5, 6, 8, 9, 10, 12]
    assert [row['validation/robust_accuracy'] for row in rows if 'validation/accuracy' in row] == [0.1, 0.3, 0.2]
    assert load_for_evaluation(tmp_path)[2]['step'] == 8
    params, _, metadata = load_for_evaluation(tmp_path, 'latest')
    assert metadata['step'] == 12
    np.testing.assert_array_equal(params['w'], result.state.params['w'])


def test_a_finished_run_is_not_run_again(tmp_path):
    first = run(tmp_path)
    rows = (tmp_path / 'metrics.jsonl').read_text()
    again = run(tmp_path, train_batches=lambda start: iter(()))
    np.testing.assert_array_equal(again.state.params['w'], first.state.params['w'])
    assert again.best['step'] == 8
    assert (tmp_path / 'metrics.jsonl').read_text() == rows


@pytest.mark.parametrize(('number', 'error'), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_saves_and_the_next_call_goes_on(tmp_path, number, error):
    def signalled(start):
        for step, batch in enumerate(batches(start), start=start + 1):
            if step == 7:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    with pytest.raises(error) as caught:
        run(tmp_path / 'a', train_batches=signalled)
    assert error is KeyboardInterrupt or caught.value.code == 143
    assert signal.getsignal(number) is before
    assert load_for_evaluation(tmp_path / 'a', 'latest')[2]['step'] == 7
    resumed = run(tmp_path / 'a', scores=(0.3, 0.2))
    whole = run(tmp_path / 'b')
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    assert resumed.best['metrics'] == whole.best['metrics']
    steps = [[row['step'] for row in read_rows(tmp_path / name / 'metrics.jsonl')] for name in 'ab']
    assert sorted({*steps[0]} ^ {*steps[1]}) == [7]


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path):
    def poisoned(start):
        for step, batch in enumerate(batches(start), start=start + 1):
            yield {**batch, 'image': batch['image'] * (np.nan if step == 8 else 1)}

    with pytest.raises(FloatingPointError, match='the loss of step 8 is nan; lower learning_rate'):
        run(tmp_path, train_batches=poisoned, eval_every=100, checkpoint_every=2, log_every=5)
    params, _, metadata = load_for_evaluation(tmp_path, 'latest')
    assert metadata['step'] == 6
    assert np.isfinite(params['w']).all()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="unknown select_metric 'robust_acuracy'; did you mean 'robust_accuracy'"):
        run(tmp_path / 'a', select_metric='robust_acuracy')
    with pytest.raises(FloatingPointError, match='robust_accuracy is nan at step 4'):
        run(tmp_path / 'b', scores=(np.nan,))
    with pytest.raises(ValueError, match='ended before step 3'):
        run(tmp_path / 'c', train_batches=lambda start: iter([next(batches(0)), next(batches(1))]))
    run(tmp_path / 'd')
    with pytest.raises(ValueError, match=r'lr: 0.1 -> 0.2'):
        run(tmp_path / 'd', config_dict={'lr': 0.2})


def test_lines_instead_of_a_bar_where_there_is_no_terminal(tmp_path, capsys):
    run(tmp_path, progress=None)
    shown = capsys.readouterr().err
    assert 'step 3/12  loss' in shown
    assert 'validation: robust_accuracy 0.3' in shown
    run(tmp_path / 'bar', progress=True)
    shown = capsys.readouterr().err
    assert '12/12' in shown
    assert 'images/s' in shown
    run(tmp_path / 'silent', progress=False)
    assert 'step' not in capsys.readouterr().err


def test_metrics_are_plain_json(tmp_path):
    run(tmp_path)
    for line in (tmp_path / 'metrics.jsonl').read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
