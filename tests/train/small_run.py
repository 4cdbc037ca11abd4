"""A program that trains a small network adversarially; the tests start, kill and repeat it.

    python small_run.py WORKDIR [--pace SECONDS] [--coordinator ADDRESS --processes N --process I]
"""
import argparse
import time

from medrobust_jax.core import numerics

numerics.configure_xla()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from medrobust_jax.core import rng  # noqa: E402
from medrobust_jax.core.types import Defense  # noqa: E402
from medrobust_jax.parallel import hosts  # noqa: E402
from medrobust_jax.parallel.mesh import data_mesh  # noqa: E402
from medrobust_jax.train.loop import fit  # noqa: E402
from medrobust_jax.train.optim import create_optimizer, create_schedule  # noqa: E402
from medrobust_jax.train.state import create_state  # noqa: E402

STEPS, PER_EPOCH, BATCH, NUM_TRAIN, IMAGE, CLASSES = 24, 6, 8, 44, (6, 6, 1), 3


def network(params, model_state, images, *, batch_norm):
    x = images.reshape(len(images), -1) @ params['w1']
    mean = model_state['mean'] if batch_norm == 'eval' else x.mean(axis=0)
    if batch_norm == 'train':
        model_state = {'mean': 0.9 * model_state['mean'] + 0.1 * mean}
    return jnp.tanh(x - mean) @ params['w2'], model_state


def craft(forward, params, model_state, state, batch, step, keys):
    start = batch['image'] + rng.uniform(keys, IMAGE, -0.1, 0.1)

    def loss(images):
        logits, _ = forward(params, model_state, images, batch_norm='batch_stats')
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).sum()

    return start + 0.05 * jnp.sign(jax.grad(loss)(start)) * (1 + state[batch['index']])[:, None, None, None]


def loss(forward, params, model_state, state, batch, crafted, step, keys):
    logits, model_state = forward(params, model_state, crafted, batch_norm='train')
    values = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
    return values, (model_state, {'accuracy': logits.argmax(-1) == batch['label']})


DEFENSE = Defense(
    init=lambda num_train, outputs, key: 0.1 * jax.random.uniform(key, (num_train,)), craft=craft, loss=loss,
    update=lambda state, batch, crafted, metrics: state.at[batch['index']].add(0.01, mode='drop'),
    end_epoch=lambda state, epoch: state / (1 + epoch))


def batches(start, pace):
    rows = jax.process_index() * BATCH // jax.process_count() + np.arange(BATCH // jax.process_count())
    for step in range(start, 10**6):
        time.sleep(pace)
        epoch, position = divmod(step, PER_EPOCH)
        order = np.random.default_rng(epoch).permutation(NUM_TRAIN)
        chosen = np.resize(order[position * BATCH:][:BATCH], BATCH)[rows]
        mask = position * BATCH + rows < NUM_TRAIN
        images = np.random.default_rng(1).uniform(size=(NUM_TRAIN, *IMAGE)).astype(np.float32)
        yield {'image': images[chosen], 'label': (chosen % CLASSES).astype(np.int32), 'mask': mask,
               'index': np.where(mask, chosen, NUM_TRAIN).astype(np.int32)}


def evaluate(params, model_state):
    norm = sum(float(np.square(np.asarray(leaf)).sum()) for leaf in jax.tree.leaves(params))
    return {'score': np.sin(50 * norm)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('workdir')
    parser.add_argument('--pace', type=float, default=0.0)
    parser.add_argument('--coordinator')
    parser.add_argument('--processes', type=int)
    parser.add_argument('--process', type=int)
    flags = parser.parse_args()
    hosts.initialize(flags.coordinator, flags.processes, flags.process)
    mesh = data_mesh()
    schedule = create_schedule('one_cycle', peak=0.3, steps=STEPS)
    optimizer = create_optimizer('sgd', schedule, nesterov=True, weight_decay=1e-3, clip_norm=1.0)
    keys = jax.random.split(jax.random.key(0), 2)
    params = {'w1': jax.random.normal(keys[0], (36, 16)), 'w2': jax.random.normal(keys[1], (16, CLASSES))}
    state = create_state(network, params, {'mean': jnp.zeros(16)}, DEFENSE, optimizer, num_train=NUM_TRAIN,
                         image_shape=IMAGE, seed=0, mesh=mesh, ema_decay=0.9)
    fit(state, forward=network, defense=DEFENSE, optimizer=optimizer,
        train_batches=lambda start: batches(start, flags.pace), steps=STEPS, steps_per_epoch=PER_EPOCH,
        evaluate_fn=evaluate, select_metric='score', eval_every=4, checkpoint_every=3,
        workdir=flags.workdir, config_dict={'steps': STEPS}, seed=0, mesh=mesh, log_every=1, ema_decay=0.9,
        augment=lambda keys, batch: {**batch, 'image': batch['image'] * rng.uniform(keys, (1, 1, 1), 0.9, 1.1)})


if __name__ == '__main__':
    main()
