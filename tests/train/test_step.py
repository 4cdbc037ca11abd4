"""The training step: padding, averages, devices, traces."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medrobust_jax.core import rng
from medrobust_jax.core.types import Defense
from medrobust_jax.parallel.mesh import data_mesh, put_batch
from medrobust_jax.train.optim import create_optimizer
from medrobust_jax.train.state import TrainState, create_state
from medrobust_jax.train.step import augmented, fill_padding, make_end_epoch, make_train_step, step_keys

NUM_TRAIN, IMAGE, HIDDEN, CLASSES = 40, (4, 4, 1), 8, 3


def mlp(params, model_state, images, *, batch_norm):
    """A two-layer perceptron that normalizes with batch statistics when told to."""
    x = images.reshape(len(images), -1) @ params['w1'] + params['b1']
    mean = model_state['mean'] if batch_norm == 'eval' else x.mean(axis=0)
    if batch_norm == 'train':
        model_state = {'mean': 0.9 * model_state['mean'] + 0.1 * mean}
    return jnp.tanh(x - mean * jax.lax.stop_gradient(params['norm'])) @ params['w2'], model_state


def adversarial(batch_norm='train'):
    """One sign step from a random start; keeps a table of how often each example was seen."""
    def losses(forward, params, model_state, images, labels, mode):
        logits, model_state = forward(params, model_state, images, batch_norm=mode)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels), model_state

    def craft(forward, params, model_state, state, batch, step, keys):
        start = batch['image'] + rng.uniform(keys, IMAGE, -0.1, 0.1, batch['image'].dtype)
        gradient = jax.grad(lambda x: losses(
            forward, params, model_state, x, batch['label'], 'batch_stats')[0].sum())(start)
        return start + 0.05 * jnp.sign(gradient)

    def loss(forward, params, model_state, state, batch, crafted, step, keys):
        values, model_state = losses(forward, params, model_state, crafted, batch['label'], batch_norm)
        return values, (model_state, {'large': values > 1.0})

    return Defense(
        init=lambda num_train, outputs, key: jnp.zeros((num_train, outputs.shape[-1])),
        craft=craft, loss=loss,
        update=lambda state, batch, crafted, metrics: state.at[batch['index']].add(1.0, mode='drop'),
        end_epoch=lambda state, epoch: state * epoch)


def variables(dtype=jnp.float32, norm=0.0):
    keys = jax.random.split(jax.random.key(0), 2)
    params = {'w1': jax.random.normal(keys[0], (16, HIDDEN), dtype), 'b1': jnp.zeros(HIDDEN, dtype),
              'w2': jax.random.normal(keys[1], (HIDDEN, CLASSES), dtype), 'norm': jnp.asarray(norm, dtype)}
    return params, {'mean': jnp.zeros(HIDDEN, dtype)}


def make_batch(step=0, size=16, real=None, dtype=np.float32):
    generator = np.random.default_rng(step)
    real = size if real is None else real
    mask = np.arange(size) < real
    index = np.where(mask, generator.permutation(NUM_TRAIN)[:size], NUM_TRAIN)
    return {'image': generator.uniform(size=(size, *IMAGE)).astype(dtype),
            'label': generator.integers(0, CLASSES, size).astype(np.int32),
            'mask': mask, 'index': index.astype(np.int32)}


def set_up(mesh, *, dtype=jnp.float32, norm=0.0, ema_decay=0.9, forward=mlp, augment=None):
    defense = adversarial()
    optimizer = create_optimizer('sgd', 0.1, weight_decay=1e-3)
    state = create_state(forward, *variables(dtype, norm), defense, optimizer, num_train=NUM_TRAIN,
                         image_shape=IMAGE, seed=0, mesh=mesh, ema_decay=ema_decay)
    step = make_train_step(forward, defense, optimizer, augment=augment, seed=0, ema_decay=ema_decay,
                           mesh=mesh)
    return state, step, defense


@pytest.fixture(scope='module')
def one():
    return data_mesh(jax.devices()[:1])


def test_the_loss_falls_and_the_step_counts(one):
    state, step, _ = set_up(one)
    losses = []
    for _ in range(12):
        state, metrics = step(state, put_batch(one, make_batch()))
        losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
    assert int(state.step) == 12
    assert losses[-1] < 0.7 * losses[0]
    assert 0 < float(metrics['gradient_norm'][0]) < 100
    assert float(metrics['large'][1]) == 16
    assert metrics['large'][0].dtype == jnp.float32


def test_a_padded_batch_equals_the_batch_without_padding(one):
    """With a model that ignores batch statistics; the padding holds NaN."""
    padded = make_batch(real=11)
    padded['image'][11:] = np.nan
    whole = {name: value[:11] for name, value in make_batch(real=11).items()}
    results = []
    for batch in (padded, whole):
        state, step, _ = set_up(one)
        for _ in range(3):
            state, metrics = step(state, put_batch(one, batch))
        results.append((state.params, state.defense_state, metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)
    assert float(results[0][2]['loss'][1]) == 11


def test_what_padding_holds_does_not_change_a_bit_under_batch_norm(one):
    results = []
    for content in (0.0, np.nan):
        batch = make_batch(real=11)
        batch['image'][11:] = content
        state, step, _ = set_up(one, norm=1.0)
        results.append(step(state, put_batch(one, batch)))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_padding_is_filled_with_real_rows_in_turn():
    mask = np.array([True, False, True, False, False])
    batch = {'image': np.arange(5.0), 'mask': mask, 'index': np.array([3, 9, 4, 9, 9])}
    filled = fill_padding(jax.tree.map(jnp.asarray, batch))
    np.testing.assert_array_equal(filled['image'], [0, 2, 2, 2, 0])
    np.testing.assert_array_equal(filled['mask'], mask)
    np.testing.assert_array_equal(filled['index'], batch['index'])


def test_unlabeled_images_are_augmented_with_keys_of_their_own_and_stay_in_order():
    mask = np.array([True, False, True])
    images = np.arange(3.0).reshape(3, 1, 1, 1)
    batch = jax.tree.map(jnp.asarray, {'image': images, 'label': np.arange(3), 'unlabeled': images + 10,
                                       'mask': mask, 'index': np.array([3, 9, 4])})
    filled = fill_padding(batch)
    np.testing.assert_array_equal(filled['unlabeled'], batch['unlabeled'])
    np.testing.assert_array_equal(filled['image'].ravel(), [0, 2, 2])

    def augment(keys, batch):
        return {**batch, 'image': batch['image'] + rng.uniform(keys, (1, 1, 1))}

    keys = step_keys(0, batch['index'], 0)
    whole = augmented(augment, keys, batch)
    labeled = augmented(augment, keys, {name: batch[name] for name in batch if name != 'unlabeled'})
    assert labeled.keys() == whole.keys() - {'unlabeled'}
    for name in labeled:
        np.testing.assert_array_equal(whole[name], labeled[name])
    drawn, theirs = (np.array(whole[name] - batch[name]).ravel() for name in ('image', 'unlabeled'))
    assert len({*drawn.round(6), *theirs.round(6)}) == 6


def test_replayed_batches_are_augmented_alike_and_attacked_anew(one):
    def noise(keys, batch):
        return {**batch, 'image': rng.uniform(keys, IMAGE)}

    def loss(forward, params, model_state, state, batch, crafted, step, keys):
        sizes = {'seen': batch['image'].sum((1, 2, 3)), 'drawn': rng.uniform(keys, ())}
        return jnp.sum(params['w1']) * jnp.ones(len(crafted)), (model_state, sizes)

    defense = adversarial()._replace(loss=loss)
    optimizer = create_optimizer('sgd', 0.0)
    seen = {}
    for replays in (1, 3):
        state = create_state(mlp, *variables(), defense, optimizer, num_train=NUM_TRAIN, image_shape=IMAGE, seed=0,
                             mesh=one)
        step = make_train_step(mlp, defense, optimizer, augment=noise, seed=0, ema_decay=None, mesh=one,
                               replays=replays)
        rows = []
        for _ in range(6):
            state, metrics = step(state, put_batch(one, make_batch()))
            rows.append([float(metrics[name][0]) for name in ('seen', 'drawn')])
        seen[replays] = np.array(rows)
    np.testing.assert_allclose(seen[3][:, 0], np.repeat(seen[1][:2, 0], 3), rtol=1e-6)
    np.testing.assert_allclose(seen[3][:, 1], seen[1][:, 1], rtol=1e-6)
    assert len(np.unique(seen[1][:, 1])) == 6


def test_a_defense_may_keep_weights_that_follow_the_network(one):
    defense = adversarial()._replace(
        start=lambda state, params, model_state, image_shape: (state, params['w1'], jnp.zeros(image_shape)),
        update=lambda state, batch, crafted, metrics: state,
        follow=lambda state, params, model_state, step: (state[0] + step, (state[1] + params['w1']) / 2, state[2]))
    optimizer = create_optimizer('sgd', 0.1)
    state = create_state(mlp, *variables(), defense, optimizer, num_train=NUM_TRAIN, image_shape=IMAGE, seed=0,
                         mesh=one)
    step = make_train_step(mlp, defense, optimizer, augment=None, seed=0, ema_decay=None, mesh=one)
    kept = np.array(variables()[0]['w1'])
    np.testing.assert_array_equal(state.defense_state[1], kept)
    assert state.defense_state[2].shape == IMAGE
    for number in range(3):
        state, _ = step(state, put_batch(one, make_batch(number)))
        kept = (kept + np.array(state.params['w1'])) / 2
    np.testing.assert_allclose(state.defense_state[1], kept, rtol=1e-6)
    np.testing.assert_array_equal(state.defense_state[0], 0 + 1 + 2)  # the steps made before each


def test_keys_follow_the_example_and_repeats_differ():
    index = jnp.array([5, 7, 5, 9, 5])
    keys = jax.random.key_data(step_keys(0, index, 3))
    assert len({tuple(row) for row in keys.tolist()}) == 5
    order = jnp.array([1, 3, 0, 2, 4])
    np.testing.assert_array_equal(jax.random.key_data(step_keys(0, index[order], 3)), keys[order])
    assert not np.array_equal(keys, jax.random.key_data(step_keys(0, index, 4)))


def test_eight_devices_equal_one_in_float64():
    results = []
    with jax.enable_x64(True):
        for devices in (jax.devices()[:1], jax.devices()):
            mesh = data_mesh(devices)
            state, step, _ = set_up(mesh, dtype=jnp.float64, norm=1.0)
            for number in range(3):
                batch = make_batch(number, real=11 if number == 2 else None, dtype=np.float64)
                state, metrics = step(state, put_batch(mesh, batch))
            results.append(jax.tree.map(np.asarray, (state, metrics)))
    assert results[0][0].params['w1'].dtype == np.float64
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), *results)


def test_one_trace_for_all_steps_with_the_last_partial_batch():
    traces = []

    def counted(*args, **kwargs):
        traces.append(kwargs['batch_norm'])
        return mlp(*args, **kwargs)

    mesh = data_mesh()
    state, step, defense = set_up(mesh, forward=counted)
    end_epoch = make_end_epoch(defense, mesh=mesh)
    traces.clear()
    for number in range(3):
        state, _ = step(state, put_batch(mesh, make_batch(number, real=5 if number == 2 else None)))
        first = traces[:2]
    state, _ = step(end_epoch(state, 1), put_batch(mesh, make_batch(3)))
    assert first == traces == ['batch_stats', 'train']


def test_tables_ignore_padding_and_epochs_end(one):
    state, step, defense = set_up(one)
    batch = make_batch(real=11)
    state, _ = step(state, put_batch(one, batch))
    seen = np.zeros((NUM_TRAIN, CLASSES))
    seen[batch['index'][:11]] = 1
    np.testing.assert_array_equal(state.defense_state, seen)
    ended = make_end_epoch(defense, mesh=one)(state, 3)
    np.testing.assert_array_equal(ended.defense_state, 3 * seen)


def test_the_state_keeps_averages_of_parameters_and_statistics(one):
    state, step, _ = set_up(one, ema_decay=0.5, norm=1.0)
    average = jax.tree.map(np.asarray, (state.params, state.model_state))
    for number in range(12):
        state, _ = step(state, put_batch(one, make_batch(number)))
        d = min(0.5, (1 + number) / (10 + number))
        average = jax.tree.map(lambda a, v, d=d: d * a + (1 - d) * np.asarray(v), average,
                               (state.params, state.model_state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ema, average)
    assert state.evaluation_variables() is state.ema
    plain, _, _ = set_up(one, ema_decay=None)
    assert plain.ema is None
    assert plain.evaluation_variables()[0] is plain.params


def test_augmentation_sees_keys_of_its_own(one):
    drawn = []

    def augment(keys, batch):
        drawn.append(keys.shape)
        return {**batch, 'image': batch['image'] * 0}

    state, step, _ = set_up(one, augment=augment)
    state, _ = step(state, put_batch(one, make_batch()))
    assert drawn == [(16,)]
    assert isinstance(state, TrainState)


def test_creating_a_state_copies_the_variables(one):
    """A step consumes the state's buffers, and the caller's arrays must outlive it."""
    params, model_state = variables()
    defense, optimizer = adversarial(), create_optimizer('sgd', 0.1)
    state = create_state(mlp, params, model_state, defense, optimizer, num_train=NUM_TRAIN,
                         image_shape=IMAGE, seed=0, mesh=one, ema_decay=0.9)
    step = make_train_step(mlp, defense, optimizer, augment=None, seed=0, ema_decay=0.9, mesh=one)
    step(state, put_batch(one, make_batch()))
    assert state.params['w1'].is_deleted()
    assert np.isfinite(params['w1']).all()
