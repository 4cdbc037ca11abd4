"""AMAT, IMA and MMA: margins by hand, at the limits, under padding, repeated draws and interruptions."""
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core import rng
from medrobust_jax.core.masking import masked_mean
from medrobust_jax.defenses.adaptive_margin import QUANTILES, adaptive_margin, halve_towards, landmark_options
from medrobust_jax.defenses.max_margin import max_margin
from medrobust_jax.defenses.standard import natural
from medrobust_jax.parallel.mesh import data_mesh, put_batch
from medrobust_jax.tasks.classification import classification
from medrobust_jax.train.checkpoint import Checkpoints, load_defense_state
from medrobust_jax.train.loop import fit
from medrobust_jax.train.optim import create_optimizer
from medrobust_jax.train.state import create_state
from medrobust_jax.train.step import make_end_epoch, make_train_step

TASK, SHAPE, ROWS = classification(2), (4, 4, 1), 8
WEIGHTS = jnp.asarray(np.random.default_rng(3).normal(size=16), jnp.float32)
STEP = jnp.int32(0)


def linear(params, model_state, images, *, batch_norm):
    """Two logits +-s/2 of `s = w (x - .5)`: the boundary is the plane s = 0."""
    score = (images.reshape(len(images), -1) - .5) @ params['w'] + params['b']
    return jnp.stack([-score / 2, score / 2], axis=-1), model_state


PARAMS = {'w': WEIGHTS, 'b': jnp.zeros(())}


def at_distances(distances):
    """Images at these signed L2 distances from the plane, labels on their own side, far from the box."""
    unit = np.asarray(WEIGHTS / jnp.linalg.norm(WEIGHTS)).reshape(SHAPE)
    images = np.float32(.5) + np.asarray(distances, np.float32)[:, None, None, None] * unit
    return {'image': jnp.asarray(images), 'label': jnp.asarray(np.array(distances) > 0, jnp.int32),
            'mask': jnp.ones(len(distances), bool), 'index': jnp.arange(len(distances))}


def one_step(defense, state, batch, keys, params=PARAMS):
    """The defense's state after one step, in the order of the training step."""
    crafted = defense.craft(linear, params, {}, state, batch, STEP, keys)
    _, (_, metrics) = defense.loss(linear, params, {}, state, batch, crafted, STEP, keys)
    return defense.update(state, batch, crafted, metrics)


def train_margins(defense, batch, epochs, *, draws=1, num_train=ROWS, params=PARAMS):
    """The defense's state after so many epochs with the weights held."""
    @jax.jit
    def draw(state, keys):
        return one_step(defense, state, batch, keys, params)

    end_epoch, state, seen = jax.jit(defense.end_epoch), defense.init(num_train, None, None), []
    for epoch in range(1, epochs + 1):
        for number in range(draws):
            state = draw(state, rng.example_keys(epoch, batch['index'], number))
        state = end_epoch(state, epoch)
        seen.append(np.array(state['margins']))
    return state, np.array(seen)


def test_two_epochs_by_hand():
    """delta .1: a margin of .05 is crossed at once, one of .15 in the second epoch, one of .9 not at all."""
    batch = at_distances([.05, -.15, .9])
    batch['label'] = batch['label'].at[2].set(1)
    state, seen = train_margins(adaptive_margin(TASK, delta=.1), batch, 2, num_train=5)
    # Fooled: (E + ||x_K - x||) / 2, and the ascent on a linear model ends on its sphere: E. Rows 3, 4: not drawn.
    np.testing.assert_allclose(seen[0], [.1, .2, .2, .1, .1], rtol=1e-4)
    np.testing.assert_allclose(seen[1], [.1, .2, .3, .1, .1], rtol=1e-4)
    np.testing.assert_array_equal(state['next'], state['margins'])
    assert not state['unfooled'].any()


@pytest.mark.parametrize('bisections', [0, 10])
def test_margins_approach_the_true_distance(bisections):
    distances = np.array([.03, .12, -.21, .33, -.4, .47, .6, -.05])
    defense = adaptive_margin(TASK, delta=.05, num_bisections=bisections, num_epochs=20)
    state, seen = train_margins(defense, at_distances(distances), 20)
    true = abs(distances)
    if bisections:  # the margin hovers around the distance: up by delta, then half way back
        assert (abs(seen[-1] - true) <= .05 + 1e-3).all()
    else:  # the first multiple of delta that fools
        assert (seen[-1] >= true - 1e-3).all()
        assert (seen[-1] <= true + .05 + 1e-3).all()
    np.testing.assert_allclose(state['history'][-1], np.quantile(seen[-1], QUANTILES), atol=1e-5)
    np.testing.assert_allclose(state['history'][0], .05)


def test_crafted_images_of_ima_lie_on_the_boundary():
    batch = at_distances([.1, -.2, .9, .02])
    defense = adaptive_margin(TASK, delta=.3, num_bisections=10)
    crafted = jax.jit(lambda keys: defense.craft(linear, PARAMS, {}, defense.init(ROWS, None, None), batch, STEP,
                                                 keys))(rng.example_keys(0, batch['index']))
    np.testing.assert_array_equal(crafted['fooled'], [True, True, False, True])
    score = (crafted['images'].reshape(4, -1) - .5) @ WEIGHTS
    assert abs(score[jnp.array([0, 1, 3])]).max() < 2e-3 * jnp.linalg.norm(WEIGHTS)
    assert score[2] > .3
    assert (crafted['distance'] <= .3 + 1e-5).all()


def test_wrong_examples_shrink_towards_nothing_in_ima_and_keep_their_margin_in_amat():
    batch = at_distances([.5, -.5])
    batch['label'] = 1 - batch['label']
    for bisections, expected in ((0, .1), (10, .1 / 4)):
        _, seen = train_margins(adaptive_margin(TASK, delta=.1, num_bisections=bisections), batch, 2, num_train=2)
        np.testing.assert_allclose(seen[-1], expected, rtol=.02)
    floor = adaptive_margin(TASK, delta=.1, num_bisections=10, min_margin=.08)
    np.testing.assert_allclose(train_margins(floor, batch, 3, num_train=2)[1][-1], .08)


@pytest.mark.parametrize('num_steps', [1, 20])
def test_the_last_iterate_is_looked_at_wherever_that_is_cheapest(num_steps):
    """Without BatchNorm both modes are one network: AMAT looks at x_K while training on it, or while crafting."""
    batch = at_distances([.03, .12, -.21, .33, -.4, .47, .9, -.05])
    by_loss, by_craft = (adaptive_margin(TASK, delta=.05, num_steps=num_steps, attack_batch_norm=mode)
                         for mode in ('batch_stats', 'eval'))
    seen, expected = (train_margins(defense, batch, 12)[1] for defense in (by_loss, by_craft))
    np.testing.assert_array_equal(seen, expected)
    assert 0 < (np.diff(seen, axis=0) == 0).sum() < np.diff(seen, axis=0).size  # some came to rest
    keys = rng.example_keys(0, batch['index'])
    crafted, found = (defense.craft(linear, PARAMS, {}, defense.init(ROWS, None, None), batch, STEP, keys)
                      for defense in (by_loss, by_craft))
    metrics = by_loss.loss(linear, PARAMS, {}, (), batch, crafted, STEP, keys)[1][1]
    np.testing.assert_array_equal(metrics['unfooled'], ~found['fooled'])


def test_margins_stop_at_e_max_and_stand_still_without_delta():
    batch = at_distances([.9, -.9])
    _, seen = train_margins(adaptive_margin(TASK, delta=.2, e_max=.5), batch, 4, num_train=2)
    np.testing.assert_allclose(seen[-1], .5)
    _, seen = train_margins(adaptive_margin(TASK, delta=0.0), batch, 3, num_train=2)
    assert not seen.any()


def test_the_expansion_step_decays_in_ame():
    batch, options = at_distances([.9, -.9]), {'delta': .1, 'num_steps': 5, 'num_bisections': 2}
    _, seen = train_margins(adaptive_margin(TASK, delta_decay=.5, **options), batch, 4, num_train=2)
    np.testing.assert_allclose(seen[:, 0], [.2, .25, .275, .2875], rtol=1e-5)
    without = [train_margins(adaptive_margin(TASK, **options, **decay), batch, 3, num_train=2)
               for decay in ({}, {'delta_decay': 1.0})]
    jax.tree.map(np.testing.assert_array_equal, *without)
    np.testing.assert_allclose(without[0][1][:, 0], [.2, .3, .4], rtol=1e-5)


def test_one_unfooled_draw_of_several_suffices():
    defense, batch = adaptive_margin(TASK, delta=.1), at_distances([.9, -.9])
    state = defense.init(2, None, None)
    crafted = {'distance': jnp.array([.04, .04])}
    state = defense.update(state, batch, crafted, {'unfooled': jnp.array([False, False])})
    state = defense.update(state, batch, crafted, {'unfooled': jnp.array([True, False])})
    np.testing.assert_allclose(state['next'], (.1 / 2 + .02) / 2 + .02)
    np.testing.assert_allclose(defense.end_epoch(state, 1)['margins'], [.2, .055], rtol=1e-5)


def test_a_row_drawn_twice_in_a_batch_counts_twice():
    index = jnp.array([2, 0, 2, 2, 5, 5])
    batch = {'index': index, 'mask': index < 5}
    drawn = jnp.arange(1.0, 7.0)
    in_turn = (((1 + 1) / 2 + 3) / 2 + 4) / 2
    np.testing.assert_allclose(jax.jit(halve_towards)(jnp.ones(5), batch, drawn), [1.5, 1, in_turn, 1, 1])


@pytest.mark.parametrize('make', [lambda: adaptive_margin(TASK, delta=.1),
                                  lambda: max_margin(TASK, d_max=.4, norm='l2')])
def test_padding_influences_nothing(make):
    defense, batch = make(), at_distances([.9, -.9, .02, .9])
    padded = {**batch, 'mask': jnp.arange(4) < 2, 'index': jnp.array([0, 2, 3, 3])}  # three rows in the table
    short = {name: value[:2] for name, value in padded.items()}
    results = []
    for rows in (padded, short):
        state = defense.init(3, None, None)
        keys = rng.example_keys(0, rows['index'])
        state = one_step(defense, state, rows, keys)
        results.append(defense.end_epoch(state, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)
    assert results[0]['margins'][1] == defense.init(3, None, None)['margins'][1]  # not drawn


def losses_of(defense, batch, keys):
    state = defense.init(ROWS, None, None)
    crafted = defense.craft(linear, PARAMS, {}, state, batch, STEP, keys)

    def mean_loss(params):
        losses, _ = defense.loss(linear, params, {}, state, batch, crafted, STEP, keys)
        return masked_mean(losses, batch['mask'])
    return jax.jit(jax.value_and_grad(mean_loss))(PARAMS)


def test_limits_are_natural_training():
    batch = at_distances(np.linspace(-.4, .5, ROWS))
    keys = rng.example_keys(0, batch['index'])
    expected = losses_of(natural(TASK), batch, keys)
    for defense in (adaptive_margin(TASK, delta=.1, beta=0.0), adaptive_margin(TASK, delta=0.0),
                    adaptive_margin(TASK, delta=0.0, beta=1.0, num_bisections=2)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                     losses_of(defense, batch, keys), expected)


def test_the_loss_mixes_clean_and_adversarial():
    batch = at_distances([.3, -.2])
    defense = adaptive_margin(TASK, delta=.1, beta=.3)
    crafted = {'images': at_distances([.1, -.4])['image'], 'fooled': jnp.zeros(2, bool), 'margin': jnp.ones(2),
               'distance': jnp.ones(2)}
    losses, (_, metrics) = defense.loss(linear, PARAMS, {}, (), batch, crafted, STEP, None)
    size = float(jnp.linalg.norm(WEIGHTS))
    expected = [.7 * np.log1p(np.exp(-size * a)) + .3 * np.log1p(np.exp(-size * b))
                for a, b in ((.3, .1), (.2, .4))]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert all(value.shape == (2,) for value in metrics.values())


def test_mma_finds_the_soft_margin():
    """With two classes p_y = 1/2 is the decision boundary, so x* lies on it, and the margins are the distances."""
    distances = np.array([.1, -.2, .9, -.05])
    batch = at_distances(distances)
    batch['label'] = batch['label'].at[3].set(1)  # wrong: trained on clean, margin stays
    defense = max_margin(TASK, d_max=.5, norm='l2', num_steps=20)
    state = defense.init(4, None, None)
    keys = rng.example_keys(0, batch['index'])
    crafted = jax.jit(lambda: defense.craft(linear, PARAMS, {}, state, batch, STEP, keys))()
    np.testing.assert_allclose(crafted['distance'][:3], [.1, .2, .525], atol=2e-3)
    np.testing.assert_array_equal(crafted['images'][3], batch['image'][3])
    updated = defense.update(state, batch, crafted, {})
    np.testing.assert_allclose(updated['margins'], [.1, .2, .525, .025], atol=2e-3)
    losses, _ = defense.loss(linear, PARAMS, {}, state, batch, crafted, STEP, keys)
    clean = TASK.loss(linear(PARAMS, {}, batch['image'], batch_norm='eval')[0], batch['label'])
    np.testing.assert_allclose(losses, [clean[0] / 3 + 2 / 3 * np.log(2), clean[1] / 3 + 2 / 3 * np.log(2),
                                        clean[2] / 3, clean[3]], rtol=2e-2)


def batches(start):
    for step in range(start, 10**6):
        rows = np.random.default_rng(step).permutation(ROWS + 1)[:4]
        images = np.random.default_rng(1).uniform(.2, .8, size=(ROWS + 1, *SHAPE)).astype(np.float32)
        yield {'image': images[rows], 'label': (rows % 2).astype(np.int32), 'mask': rows < ROWS,
               'index': rows.astype(np.int32)}


def start_of(defense):
    mesh, optimizer = data_mesh(jax.devices()[:1]), create_optimizer('sgd', .1)
    state = create_state(linear, PARAMS, {}, defense, optimizer, num_train=ROWS, image_shape=SHAPE, seed=0,
                         mesh=mesh)
    return mesh, optimizer, state


@pytest.mark.parametrize('make', [lambda: adaptive_margin(TASK, delta=.1, num_epochs=4),
                                  lambda: max_margin(TASK, d_max=.4)])
def test_margins_come_back_bit_equal(tmp_path, make):
    def run(workdir, source):
        defense = make()
        mesh, optimizer, state = start_of(defense)
        return fit(state, forward=linear, defense=defense, optimizer=optimizer, train_batches=source, steps=10,
                   steps_per_epoch=3, evaluate_fn=lambda params, model_state: {'accuracy': 1.0},
                   select_metric='accuracy', eval_every=10, checkpoint_every=4, workdir=workdir, seed=0, mesh=mesh,
                   config_dict={}, progress=False).state

    def interrupted(start):
        for step, batch in enumerate(batches(start), start=start + 1):
            if step == 5:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    with pytest.raises(SystemExit):
        run(tmp_path / 'a', interrupted)
    resumed, whole = run(tmp_path / 'a', batches), run(tmp_path / 'b', batches)
    jax.tree.map(np.testing.assert_array_equal, resumed.defense_state, whole.defense_state)
    jax.tree.map(np.testing.assert_array_equal, load_defense_state(tmp_path / 'b'), dict(whole.defense_state))
    assert len(np.unique(whole.defense_state['margins'])) > 1


def test_tables_are_read_from_a_workdir(tmp_path):
    with pytest.raises(FileNotFoundError, match="no 'latest' checkpoint"):
        load_defense_state(tmp_path)
    _, _, state = start_of(natural(TASK))
    with Checkpoints(tmp_path, config={}) as checkpoints:
        with pytest.raises(FileNotFoundError, match='has not saved one yet'):
            load_defense_state(tmp_path)
        checkpoints.save(1, state)
    assert not jax.tree.leaves(load_defense_state(tmp_path))


def test_steps_and_epochs_are_compiled_once():
    defense = adaptive_margin(TASK, delta=.1, num_steps=2, num_bisections=2)
    mesh, optimizer, state = start_of(defense)
    step = make_train_step(linear, defense, optimizer, augment=None, seed=0, ema_decay=None, mesh=mesh)
    end_epoch, source = make_end_epoch(defense, mesh=mesh), batches(0)
    for epoch in (1, 2):
        for _ in range(2):
            state, metrics = step(state, put_batch(mesh, next(source)))
        state = end_epoch(state, epoch)
    assert step._cache_size() == 1
    assert end_epoch._cache_size() == 1
    assert {'margin', 'unfooled', 'accuracy', 'robust_accuracy'} <= set(metrics)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, metrics)))


def test_outputs_that_are_not_finite_count_as_fooled():
    def broken(params, model_state, images, *, batch_norm):
        return jnp.full((len(images), 2), jnp.nan), model_state

    batch, defense = at_distances([.3, .2]), adaptive_margin(TASK, delta=.1, num_bisections=2)
    state = defense.init(2, None, None)
    crafted = defense.craft(broken, PARAMS, {}, state, batch, STEP, rng.example_keys(0, batch['index']))
    assert crafted['fooled'].all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(crafted))


def test_refusals():
    for options in ({'delta': -1.0}, {'beta': 1.5}, {'alpha': 0.0}, {'e_max': 0.0}, {'min_margin': .2},
                    {'step_size': 0.0}, {'num_bisections': -1}, {'delta_decay': 0.0},
                    {'delta_decay': 1.5}, {'norm': 'l3'}, {'num_steps': 0}):
        with pytest.raises(ValueError, match=r'must|unknown'):
            adaptive_margin(TASK, **{'delta': .1, **options})
    for options in ({'d_max': 0.0}, {'clean_share': 1.0}, {'start_margin': 1.0}, {'relative_step_size': 0.0}):
        with pytest.raises(ValueError, match='max_margin needs'):
            max_margin(TASK, **{'d_max': .1, **options})
    with pytest.raises(ValueError, match='must be positive'):
        landmark_options(0.0, num_epochs=5)
    options = landmark_options(2.0, num_epochs=460)
    assert options == {'e_max': 2.0, 'delta': pytest.approx(.1), 'min_margin': pytest.approx(.1), 'step_size': .5}
    assert adaptive_margin(TASK, **options).init(3, None, None)['margins'].shape == (3,)
