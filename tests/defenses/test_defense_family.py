"""MART, GAIRAT, HAT, temporal ensembling, MPAdvT, several attack losses: limits, by hand, on a task of trees."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.core import rng
from medrobust_jax.core.masking import masked_mean
from medrobust_jax.core.types import Task
from medrobust_jax.defenses.adaptive_margin import adaptive_margin
from medrobust_jax.defenses.gairat import gairat, geometry_weights
from medrobust_jax.defenses.hat import hat
from medrobust_jax.defenses.mart import mart
from medrobust_jax.defenses.max_margin import max_margin
from medrobust_jax.defenses.mpadvt import mpadvt
from medrobust_jax.defenses.pgd_at import pgd_at
from medrobust_jax.defenses.radius import constant, warmed_up
from medrobust_jax.defenses.standard import natural
from medrobust_jax.defenses.temporal_ensembling import temporal_ensembling
from medrobust_jax.defenses.trades import trades
from medrobust_jax.defenses.two_attacks import two_attacks
from medrobust_jax.losses.classification import cross_entropy
from medrobust_jax.losses.consistency import squared_error
from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.unet import UNet
from medrobust_jax.parallel.mesh import data_mesh, put_batch
from medrobust_jax.tasks.classification import classification
from medrobust_jax.tasks.segmentation import segmentation
from medrobust_jax.train.optim import create_optimizer
from medrobust_jax.train.state import create_state
from medrobust_jax.train.step import make_train_step

TASK, STEP, SIZE = classification(3), jnp.int32(5), 6
ATTACK, GAUSSIAN = pgd(num_steps=2), pgd(num_steps=2, start='gaussian')
RADIUS = constant(.1)
KEYS = rng.example_keys(0, jnp.arange(SIZE))


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {'w1': draw(0, 16, 8), 'b1': draw(1, 8), 'w2': draw(2, 8, 3)}
STATE = {'mean': jnp.zeros(8)}


def forward(params, model_state, images, *, batch_norm):
    """A perceptron whose features are centered, by the batch or by a running mean."""
    hidden = jnp.tanh((images.reshape(len(images), -1) - .5) @ params['w1'] + params['b1'])
    mean = model_state['mean'] if batch_norm == 'eval' else hidden.mean(axis=0)
    if batch_norm == 'train':
        model_state = {'mean': .9 * model_state['mean'] + .1 * mean}
    return (hidden - mean) @ params['w2'], model_state


def helper(images):
    return images.reshape(len(images), -1) @ draw(7, 16, 3)


def make_batch():
    generator = np.random.default_rng(1)
    return {'image': jnp.asarray(generator.uniform(size=(SIZE, 4, 4, 1)), jnp.float32),
            'label': jnp.asarray(generator.integers(0, 3, SIZE)), 'mask': jnp.arange(SIZE) < SIZE - 1,
            'index': jnp.arange(SIZE)}


def losses_and_gradient(defense, step=STEP):
    batch, state = make_batch(), defense.init(SIZE, jnp.zeros((1, 3)), None)

    @jax.jit
    def both():
        crafted = defense.craft(forward, PARAMS, STATE, state, batch, step, KEYS)

        def mean_loss(params):
            losses, rest = defense.loss(forward, params, STATE, state, batch, crafted, step, KEYS)
            return masked_mean(losses, batch['mask']), (losses, rest[0])
        return jax.grad(mean_loss, has_aux=True)(PARAMS)
    return both()


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


LIMITS = {
    'hat without helpers is trades': (lambda: hat(TASK, GAUSSIAN, helper, radius=RADIUS, beta=2.0, gamma=0.0),
                                      lambda: trades(TASK, GAUSSIAN, radius=RADIUS, beta=2.0)),
    'gairat before burn-in is pgd_at': (lambda: gairat(TASK, ATTACK, radius=RADIUS, burn_in_steps=6),
                                        lambda: pgd_at(TASK, ATTACK, radius=RADIUS)),
    'te of weight 0 is pgd_at': (
        lambda: temporal_ensembling(TASK, ATTACK, radius=RADIUS, total_steps=6, weight=0.0),
        lambda: pgd_at(TASK, ATTACK, radius=RADIUS)),
    'te before its ramp is pgd_at': (lambda: temporal_ensembling(TASK, ATTACK, radius=RADIUS, total_steps=11),
                                     lambda: pgd_at(TASK, ATTACK, radius=RADIUS)),
    'mpadvt of probability 0 is natural': (lambda: mpadvt(TASK, probability=0.0, l1_weight=0.0),
                                           lambda: natural(TASK)),
    'attack losses without radius': (
        lambda: two_attacks(TASK, (TASK.loss,), radius=warmed_up(RADIUS, steps=10**9)),
        lambda: pgd_at(TASK, ATTACK, radius=constant(0.0), clean_weight=.5)),
    'fast at is one step beyond the ball': (
        lambda: two_attacks(TASK, (TASK.loss,), radius=RADIUS, num_steps=1, step_size=.125, start='clean',
                            attack_batch_norm='eval'),
        lambda: pgd_at(TASK, pgd(num_steps=1, relative_step_size=1.25, start='clean'), radius=RADIUS,
                       clean_weight=.5)),
}


@pytest.mark.parametrize('pair', LIMITS.values(), ids=LIMITS.keys())
def test_limits(pair):
    assert_same(losses_and_gradient(pair[0]()), losses_and_gradient(pair[1]()))


def test_mart_by_hand():
    batch = make_batch()
    crafted, rows = batch['image'][::-1], np.arange(SIZE)
    clean, state = forward(PARAMS, STATE, batch['image'], batch_norm='train')
    outputs, _ = forward(PARAMS, state, crafted, batch_norm='train')
    p, q = (np.asarray(jax.nn.softmax(z), np.float64) for z in (clean, outputs))
    labels = np.asarray(batch['label'])
    others = np.where(np.arange(3) == labels[:, None], 0, q).max(axis=1)
    boosted = -np.log(q[rows, labels]) - np.log(1.0001 - others)
    for beta in (0.0, 3.0):
        losses, (_, metrics) = mart(TASK, GAUSSIAN, radius=RADIUS, beta=beta).loss(
            forward, PARAMS, STATE, (), batch, crafted, STEP, KEYS)
        expected = boosted + beta * (p * np.log(p / q)).sum(1) * (1 - p[rows, labels])
        np.testing.assert_allclose(losses, expected, rtol=2e-3)  # 1.0001 - max cancels in float32
    np.testing.assert_array_equal(metrics['robust_accuracy'], q.argmax(1) == labels)


def test_geometry_weights():
    kappa, mask = jnp.array([0, 5, 10, 10]), jnp.array([True, True, True, False])
    weights = geometry_weights(kappa, mask, num_steps=10)
    raw = (1 + np.tanh(-1 + 5 * (1 - 2 * np.array([0, .5, 1, 1])))) / 2
    np.testing.assert_allclose(weights, raw / raw[:3].mean(), rtol=1e-4)
    np.testing.assert_allclose(geometry_weights(jnp.full(4, 10), mask, num_steps=10), 1, rtol=1e-5)


def test_gairat_weighs_by_the_looks_that_were_right():
    batch = make_batch()
    defense = gairat(TASK, pgd(num_steps=4), radius=RADIUS, burn_in_steps=5)
    crafted = defense.craft(forward, PARAMS, STATE, (), batch, STEP, KEYS)
    assert set(np.unique(crafted['kappa'])) <= set(range(5))
    assert len(np.unique(crafted['kappa'])) > 1
    np.testing.assert_allclose(crafted['weight'], geometry_weights(crafted['kappa'], batch['mask'], num_steps=4))
    losses, _ = defense.loss(forward, PARAMS, STATE, (), batch, crafted, STEP, KEYS)
    plain, _ = pgd_at(TASK, ATTACK, radius=RADIUS).loss(forward, PARAMS, STATE, (), batch, crafted['images'], STEP,
                                                        KEYS)
    np.testing.assert_allclose(losses, crafted['weight'] * plain, rtol=1e-5)


def test_hat_adds_helper_examples():
    batch = make_batch()
    crafted = jnp.clip(batch['image'] + .1, 0, 1)
    base = trades(TASK, GAUSSIAN, radius=RADIUS).loss(forward, PARAMS, STATE, (), batch, crafted, STEP, KEYS)
    losses, _ = hat(TASK, GAUSSIAN, helper, radius=RADIUS, gamma=.5).loss(
        forward, PARAMS, STATE, (), batch, crafted, STEP, KEYS)
    beyond = batch['image'] + 3.5 * (crafted - batch['image'])
    outputs = forward(PARAMS, STATE, beyond, batch_norm='train')[0]
    expected = base[0] + .5 * TASK.loss(outputs, helper(crafted).argmax(axis=-1))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_temporal_ensembling_by_hand():
    batch = make_batch()
    batch = {**batch, 'index': jnp.array([0, 1, 2, 3, 3, 6])}  # row 3 twice; the last is padding
    defense = temporal_ensembling(TASK, ATTACK, radius=RADIUS, total_steps=10, weight=20.0)
    state = defense.init(6, jnp.zeros((1, 3)), None)
    p = jax.nn.softmax(forward(PARAMS, STATE, batch['image'], batch_norm='eval')[0])
    for step in (4, 5, 6):  # starts at 5
        crafted = defense.craft(forward, PARAMS, STATE, state, batch, jnp.int32(step), KEYS)
        np.testing.assert_allclose(crafted['goal'].sum(axis=1), 1, rtol=1e-5)
        losses, _ = defense.loss(forward, PARAMS, STATE, state, batch, crafted, jnp.int32(step), KEYS)
        outputs = forward(PARAMS, STATE, crafted['images'], batch_norm='train')[0]
        weight = {4: 0, 5: 20 * np.exp(-5), 6: 20 * np.exp(-5 / 4)}[step]
        pull = jnp.mean((jax.nn.softmax(outputs) - crafted['goal'])**2, axis=1)
        np.testing.assert_allclose(losses, TASK.loss(outputs, batch['label']) + weight * pull, rtol=1e-4)
        state = defense.update(state, batch, crafted, {})
        assert state['mass'].any() == (step >= 5)
    np.testing.assert_allclose(state['mass'], [.19] * 4 + [0, 0], rtol=1e-5)
    np.testing.assert_allclose(state['average'][:4], .19 * p[:4], rtol=1e-5)  # the first draw of row 3 counts
    assert not state['average'][4:].any()


def test_temporal_ensembling_refuses_a_table_that_does_not_fit():
    defense = temporal_ensembling(TASK, ATTACK, radius=RADIUS, total_steps=10,
                                  flat=lambda x: x.reshape(len(x), -1))
    with pytest.raises(ValueError, match=r'keeps 262144 outputs of each of 100000 .* 105 GB, above .* = 4 GB'):
        defense.init(100_000, jnp.zeros((1, 256, 256, 4)), None)


def test_temporal_ensembling_averages_the_full_size_logits_of_deep_supervision():
    module = UNet(2, width=4, depth=3, deep_supervision=True)
    params, model_state = jax.eval_shape(lambda: init_variables(module, jax.random.key(0), (16, 16, 1)))
    batch = {'image': jnp.zeros((2, 16, 16, 1)), 'segmentation': jnp.zeros((2, 16, 16), jnp.int32),
             'mask': jnp.ones(2, bool), 'index': jnp.arange(2)}
    defense = temporal_ensembling(segmentation(2), pgd(num_steps=1), radius=RADIUS, total_steps=4,
                                  attack_batch_norm='batch_stats')
    state = defense.init(2, jnp.zeros((1, 16, 16, 2)), None)

    def step(params, model_state):
        crafted = defense.craft(apply_model(module), params, model_state, state, batch, STEP, KEYS[:2])
        losses, _ = defense.loss(apply_model(module), params, model_state, state, batch, crafted, STEP, KEYS[:2])
        return losses, defense.update(state, batch, crafted, {})

    losses, after = jax.eval_shape(step, params, model_state)
    assert (losses.shape, after['average'].shape) == ((2,), (2, 16 * 16 * 2))


def test_mpadvt_draws_batches_strengths_and_lengths():
    batch, defense = make_batch(), mpadvt(TASK, l1_weight=0.0)

    @jax.jit
    def crafts(seed):
        keys = rng.example_keys(seed, jnp.arange(SIZE))
        return abs(defense.craft(forward, PARAMS, STATE, (), batch, STEP, keys) - batch['image']).max()

    sizes = np.array([crafts(seed) for seed in range(60)])
    assert .3 < (sizes == 0).mean() < .7
    assert sizes.max() <= .04 + 1e-6
    assert sizes[sizes > 0].min() >= .0095
    assert np.ptp(sizes[sizes > 0]) > .02
    weighted, plain = (mpadvt(TASK, l1_weight=w).loss(
        forward, PARAMS, STATE, (), batch, batch['image'], STEP, KEYS)[0] for w in (1.0, 0.0))
    weights = np.concatenate([np.abs(PARAMS[name]).ravel() for name in ('w1', 'w2')])
    np.testing.assert_allclose(weighted - plain, weights.mean(), rtol=1e-3)


def test_two_attacks_by_hand():
    batch = make_batch()
    crafted = (batch['image'][::-1], 1 - batch['image'])
    defense = two_attacks(TASK, (TASK.loss, lambda outputs, labels: -outputs[:, 0]), radius=RADIUS)
    losses, _ = defense.loss(forward, PARAMS, STATE, (), batch, crafted, STEP, KEYS)
    clean, first, second = (TASK.loss(forward(PARAMS, STATE, x, batch_norm='train')[0], batch['label'])
                            for x in (batch['image'], *crafted))
    np.testing.assert_allclose(losses, (clean + first / 2 + second / 2) / 2, rtol=1e-5)
    found = jax.jit(lambda: defense.craft(forward, PARAMS, STATE, (), batch, STEP, KEYS))()
    outputs = [forward(PARAMS, STATE, x, batch_norm='batch_stats')[0] for x in found]
    assert TASK.loss(outputs[0], batch['label']).mean() > TASK.loss(outputs[1], batch['label']).mean()
    assert -outputs[1][:, 0].mean() > -outputs[0][:, 0].mean()
    assert max(abs(x - batch['image']).max() for x in found) <= .1 + 1e-6


# A task whose outputs and targets are trees: a label map and points, found by one linear map each.
def dense_task():
    def loss(outputs, targets):
        maps = cross_entropy(outputs['maps'], targets['segmentation']).mean(axis=(1, 2))
        return maps + jnp.abs(outputs['points'] - targets['points']).mean(axis=(1, 2))

    def quality(outputs, targets):
        return -loss(outputs, targets)

    return Task(name='toy', num_outputs=2, target_names=('segmentation', 'points'),
                targets=lambda batch: {name: batch[name] for name in ('segmentation', 'points')}, loss=loss,
                acceptable=lambda outputs, targets: quality(outputs, targets) >= -1.0, divergence=squared_error,
                predict=lambda outputs: outputs['maps'].argmax(axis=-1), metrics=lambda *args: {},
                verdict_metrics=lambda *args: {}, check_targets=lambda targets: None)


def dense_forward(params, model_state, images, *, batch_norm):
    features = jnp.tanh(images * params['scale'] + params['shift'])
    points = jnp.tanh(features.mean(axis=(1, 2))[:, None, :2])
    return {'maps': features @ params['w'], 'points': points}, model_state


DENSE_PARAMS = {'scale': jnp.ones(1), 'shift': jnp.linspace(-1, .5, 4), 'w': draw(4, 4, 2)}
DENSE = dense_task()
MAKERS = {
    'natural': lambda: natural(DENSE),
    'pgd_at': lambda: pgd_at(DENSE, ATTACK, radius=RADIUS),
    'trades': lambda: trades(DENSE, GAUSSIAN, radius=RADIUS),
    'mart': lambda: mart(DENSE, GAUSSIAN, radius=RADIUS),
    'gairat': lambda: gairat(DENSE, ATTACK, radius=RADIUS, burn_in_steps=0),
    'hat': lambda: hat(DENSE, GAUSSIAN, lambda x: dense_forward(DENSE_PARAMS, {}, x, batch_norm='eval')[0],
                       radius=RADIUS),
    'te': lambda: temporal_ensembling(DENSE, ATTACK, radius=RADIUS, total_steps=4, ramp=(0.0, .5)),
    'mpadvt': lambda: mpadvt(DENSE),
    'amat': lambda: adaptive_margin(DENSE, delta=.5, num_steps=2),
    'ima': lambda: adaptive_margin(DENSE, delta=.5, num_steps=2, num_bisections=2, norm='linf'),
    'mma': lambda: max_margin(DENSE, d_max=.5, num_steps=2, num_bisections=2),
    'two_attacks': lambda: two_attacks(
        DENSE, (DENSE.loss, lambda outputs, targets: jnp.abs(outputs['points'] - targets['points']).sum((1, 2))),
        radius=RADIUS, num_steps=2),
}


def dense_batch(step=0):
    generator = np.random.default_rng(step)
    return {'image': generator.uniform(size=(4, 6, 6, 1)).astype(np.float32),
            'segmentation': generator.integers(0, 2, (4, 6, 6)).astype(np.int32),
            'points': generator.uniform(size=(4, 1, 2)).astype(np.float32), 'mask': np.arange(4) < 3,
            'index': np.array([step, 1 + step, 2 + step, 8], np.int32)}


@pytest.mark.parametrize('name', MAKERS)
def test_trees_of_outputs_and_targets(name):
    """Two training steps of one compiled program; what fills the padded row changes nothing."""
    defense = MAKERS[name]()
    mesh, optimizer = data_mesh(jax.devices()[:1]), create_optimizer('sgd', .1)
    step = make_train_step(dense_forward, defense, optimizer, augment=None, seed=0, ema_decay=None, mesh=mesh)
    ends = []
    for fill in (0, 1):
        state = create_state(dense_forward, DENSE_PARAMS, {}, defense, optimizer, num_train=8,
                             image_shape=(6, 6, 1), seed=0, mesh=mesh)
        for number in range(2):
            batch = dense_batch(number)
            batch['image'][3], batch['segmentation'][3], batch['points'][3] = fill, fill, fill
            state, metrics = step(state, put_batch(mesh, batch))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, metrics)))
        ends.append((state.params, state.defense_state))
    assert step._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert any(np.any(np.asarray(new) != old) for new, old in zip(
        jax.tree.leaves(ends[0][0]), jax.tree.leaves(DENSE_PARAMS), strict=True))


def test_crafting_climbs_on_trees():
    batch = jax.tree.map(jnp.asarray, dense_batch())
    keys = rng.example_keys(0, batch['index'])
    clean = dense_forward(DENSE_PARAMS, {}, batch['image'], batch_norm='eval')[0]
    for name in ('pgd_at', 'trades', 'amat', 'two_attacks'):
        defense = MAKERS[name]()
        state = defense.init(8, jax.tree.map(lambda leaf: leaf[:1], clean), None)
        crafted = jax.jit(lambda d=defense, s=state: d.craft(
            dense_forward, DENSE_PARAMS, {}, s, batch, STEP, keys))()
        images = crafted['images'] if isinstance(crafted, dict) else jax.tree.leaves(crafted)[0]
        outputs = dense_forward(DENSE_PARAMS, {}, images, batch_norm='eval')[0]
        measure = (lambda o: DENSE.divergence(clean, o)) if name == 'trades' else (
            lambda o: DENSE.loss(o, DENSE.targets(batch)))
        assert (measure(outputs) > measure(clean)).all(), name


def test_refusals():
    for make in (lambda: mart(TASK, ATTACK, radius=RADIUS, beta=-1.0),
                 lambda: gairat(TASK, ATTACK, radius=RADIUS, burn_in_steps=-1),
                 lambda: hat(TASK, ATTACK, helper, radius=RADIUS, gamma=-1.0),
                 lambda: temporal_ensembling(TASK, ATTACK, radius=RADIUS, total_steps=10, decay=1.0),
                 lambda: temporal_ensembling(TASK, ATTACK, radius=RADIUS, total_steps=10, ramp=(.7, .5)),
                 lambda: mpadvt(TASK, eps_low=.1, eps_high=.05), lambda: mpadvt(TASK, probability=2.0),
                 lambda: two_attacks(TASK, (), radius=RADIUS),
                 lambda: two_attacks(TASK, (TASK.loss,), radius=RADIUS, step_size=0.0)):
        with pytest.raises(ValueError, match=r'must|needs'):
            make()
