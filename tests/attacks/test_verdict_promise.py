"""The promise about verdicts: in blocks of one width, no bit depends on batch, order, padding or runner."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.stabilized import smia
from medrobust_jax.attacks.wrappers import restarts
from medrobust_jax.core import rng
from medrobust_jax.core.blocks import in_blocks, on_each_device
from medrobust_jax.core.types import Victim
from medrobust_jax.losses.classification import cross_entropy, prediction_is_right
from medrobust_jax.models.forward import eval_forward, init_variables
from medrobust_jax.models.registry import create_model

NETS = {'conv': ('resnet', {'stage_sizes': (1,), 'width': 8, 'norm': 'group'}),
        'mlp': ('perceptron', {}),
        'vit': ('vision_transformer', {'depth': 1, 'width': 16, 'num_heads': 2})}
ATTACKS = {'pgd': pgd(num_steps=3), 'smia': restarts(smia(num_steps=2, start='ball', norm='l2'), 2)}
SHAPE, EPS = (8, 8, 1), .03


@pytest.fixture(scope='module', params=list(NETS))
def victim(request):
    name, options = NETS[request.param]
    module = create_model(name, 3, **options)
    params, state = init_variables(module, jax.random.key(1), SHAPE)
    # Larger weights: logits that differ, and gradients of many sizes.
    params = jax.tree.map(lambda w: 2 * w if w.ndim > 1 else w, params)
    return Victim(eval_forward(module, params, state), cross_entropy, prediction_is_right)


@pytest.fixture(scope='module')
def batch():
    images = np.random.default_rng(0).uniform(size=(40, *SHAPE)).astype(np.float32)
    return rng.example_keys(0, jnp.arange(40)), jnp.asarray(images)


def labels_of(victim, images):
    """Mostly right answers, by the victim's own word."""
    predicted = np.asarray(jax.jit(victim.forward)(images, None)).argmax(-1)
    return jnp.asarray(np.where(np.arange(len(images)) % 10 == 0, (predicted + 1) % 3, predicted))


def assert_same(got, expected, rows):
    for name in expected._fields:
        truth = np.asarray(getattr(expected, name))[rows]
        np.testing.assert_array_equal(np.asarray(getattr(got, name)), truth, name)


# Every size is a compilation: all of them for the cheapest net, the decisive ones for the others.
@pytest.mark.parametrize(('victim', 'attack', 'sizes'), [
    ('mlp', 'pgd', (1, 19)), ('conv', 'pgd', (7,)), ('vit', 'pgd', (7,)),
    pytest.param('mlp', 'smia', (7, 8), marks=pytest.mark.long),
    pytest.param('conv', 'smia', (7, 19), marks=pytest.mark.long),
    pytest.param('vit', 'smia', (7, 19), marks=pytest.mark.long)], indirect=['victim'])
def test_bits_are_those_of_any_batch_order_and_padding(attack, sizes, victim, batch):
    attack = ATTACKS[attack]
    keys, images = batch
    labels = labels_of(victim, images)
    blocked = jax.jit(in_blocks(partial(run, attack, victim, eps=EPS), width=8))
    whole = blocked(keys, images, labels)
    assert 0 < whole.acceptable.mean() < 1  # both verdicts occur
    for size in sizes:
        assert_same(blocked(keys[:size], images[:size], labels[:size]), whole, slice(size))
    order = np.random.default_rng(3).permutation(40)
    assert_same(blocked(keys[order], images[order], labels[order]), whole, order)
    rows = np.array([5, 6, 7, 39, 39, 39, 39])  # padded with another row
    assert_same(blocked(keys[rows], images[rows], labels[rows]), whole, rows)


def test_devices_change_few_verdicts_and_no_bit_of_one_device_count(victim, batch):
    keys, images = batch
    labels = labels_of(victim, images)
    blocked = in_blocks(partial(run, ATTACKS['pgd'], victim, eps=EPS), width=8)
    whole = jax.jit(blocked)(keys, images, labels)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    # XLA compiles other programs for 8 devices than for one: last bits may differ between the two.
    each = jax.jit(on_each_device(blocked, mesh))
    eight = each(keys, images, labels)
    assert (np.asarray(eight.acceptable) != np.asarray(whole.acceptable)).mean() <= .002
    assert (np.asarray(eight.images) == np.asarray(whole.images)).mean() > .99
    order = np.random.default_rng(3).permutation(40)  # every row on another device
    assert_same(each(keys[order], images[order], labels[order]), eight, order)


def one_by_one(attack, victim):
    def attack_one(key, image, label):
        result = run(attack, victim, key[None], image[None], label[None], eps=EPS)
        return jax.tree.map(lambda a: a[0], result)
    return jax.vmap(attack_one)


def runners(attack, victim):
    """name -> (keys, images, labels) -> result, for a batch of 40."""
    plain = partial(run, attack, victim, eps=EPS)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec('data'))

    def pmapped(*args):
        split = jax.tree.map(lambda a: a.reshape(8, 5, *a.shape[1:]), args)
        return jax.tree.map(lambda a: a.reshape(40, *a.shape[2:]), jax.pmap(plain)(*split))

    return {'jit': jax.jit(plain), 'vmap': jax.jit(one_by_one(attack, victim)), 'pmap': pmapped,
            'sharded jit': lambda *args: jax.jit(plain)(*jax.device_put(args, rows)),
            'shard_map': jax.jit(on_each_device(plain, mesh))}


def smooth_victim(dtype):
    generator = np.random.default_rng(4)
    w1, w2 = (generator.normal(size=shape).astype(dtype) / 3 for shape in ((64, 16), (16, 3)))
    forward = lambda x, k: jnp.tanh((x.reshape(len(x), -1) - .5) @ w1) @ w2  # noqa: E731
    return Victim(forward, cross_entropy, prediction_is_right)


@pytest.mark.parametrize('attack', [pgd(num_steps=3), pytest.param(smia(num_steps=3), marks=pytest.mark.long)],
                         ids=['pgd', 'smia'])
def test_runners_are_equal_in_float64(attack, batch):
    with jax.enable_x64(True):
        victim = smooth_victim(np.float64)
        keys, images = batch[0], jnp.asarray(batch[1], jnp.float64)
        labels = labels_of(victim, images)
        results = {name: go(keys, images, labels) for name, go in runners(attack, victim).items()}
        assert 0 < results['jit'].acceptable.mean() < 1
        for got in results.values():
            np.testing.assert_array_equal(got.acceptable, results['jit'].acceptable)
            np.testing.assert_array_equal(got.first_fooled, results['jit'].first_fooled)
            np.testing.assert_allclose(got.images, results['jit'].images, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize('victim', ['conv'], indirect=True)
def test_runners_differ_in_few_verdicts_in_float32(victim, batch):
    keys, images = batch
    labels = labels_of(victim, images)
    every = runners(pgd(num_steps=3), victim)
    expected = np.asarray(every['jit'](keys, images, labels).acceptable)
    for name in ('vmap', 'pmap', 'sharded jit'):
        assert (np.asarray(every[name](keys, images, labels).acceptable) != expected).mean() <= .002, name
