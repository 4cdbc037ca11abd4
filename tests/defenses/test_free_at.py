"""Free adversarial training and training with guided complement entropy: by hand and at their limits."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import perturb
from medrobust_jax.core.types import Victim
from medrobust_jax.defenses.free_at import free_at
from medrobust_jax.defenses.guided_complement import guided_complement
from medrobust_jax.defenses.radius import constant, warmed_up
from medrobust_jax.defenses.standard import natural
from medrobust_jax.losses.classification import guided_complement_entropy
from medrobust_jax.parallel.mesh import data_mesh, put_batch
from medrobust_jax.tasks.classification import classification
from medrobust_jax.tasks.ordinal import ordinal
from medrobust_jax.train.optim import create_optimizer
from medrobust_jax.train.state import create_state
from medrobust_jax.train.step import make_train_step
from tests.defenses.test_defense_family import KEYS, PARAMS, SIZE, STATE, STEP, assert_same, forward, make_batch

TASK, SHAPE = classification(3), (4, 4, 1)
FREE = free_at(TASK, radius=constant(.1), batch_size=SIZE)


def start(defense=FREE):
    return defense.start(defense.init(SIZE, None, None), PARAMS, STATE, SHAPE)


def crafted_by(defense, state, batch, step=STEP):
    return jax.jit(lambda: defense.craft(forward, PARAMS, STATE, state, batch, step, KEYS))()


def ascended(images, labels, size):
    gradient = jax.grad(lambda x: TASK.loss(forward(PARAMS, STATE, x, batch_norm='batch_stats')[0], labels).sum())
    return size * jnp.sign(gradient(images))


def test_the_perturbation_is_carried_over_and_trained_on_before_it_moves():
    batch = make_batch()
    other = {**batch, 'image': batch['image'][::-1], 'label': batch['label'][::-1]}  # the next batch
    defense, state = free_at(TASK, radius=constant(.1), batch_size=SIZE, relative_step_size=.7), start()
    kept = jnp.zeros_like(batch['image'])
    for each in (batch, batch, batch, other):
        crafted = crafted_by(defense, state, each)
        np.testing.assert_allclose(crafted['images'], jnp.clip(each['image'] + kept, 0, 1), rtol=1e-6)
        kept = jnp.clip(kept + ascended(crafted['images'], each['label'], .07), -.1, .1)
        np.testing.assert_allclose(crafted['next'], kept, atol=1e-6)
        state = defense.update(state, each, crafted, {})
    assert abs(kept).max() == pytest.approx(.1)


def test_one_replay_is_a_one_step_attack_from_the_carried_start():
    """From no perturbation it is FGSM; the next batch starts where it ended."""
    batch = make_batch()
    inside = {**batch, 'image': .2 + .6 * batch['image']}  # the box touches nothing
    first = crafted_by(FREE, start(), inside)
    np.testing.assert_array_equal(first['images'], inside['image'])
    victim = Victim(lambda x, keys: forward(PARAMS, STATE, x, batch_norm='batch_stats')[0], TASK.loss,
                    TASK.acceptable)
    fast = jax.jit(partial(perturb, pgd(num_steps=1, relative_step_size=1.0, start='clean'), victim, eps=.1))(
        KEYS, inside['image'], inside['label'])
    second = crafted_by(FREE, FREE.update(start(), inside, first, {}), inside)
    np.testing.assert_allclose(second['images'], fast, atol=1e-6)


def test_limits_are_natural_training():
    batch = make_batch()
    for defense in (free_at(TASK, radius=constant(0.0), batch_size=SIZE), FREE):  # and the very first step
        crafted = crafted_by(defense, start(defense), batch)
        losses, (state, _) = defense.loss(forward, PARAMS, STATE, (), batch, crafted, STEP, KEYS)
        expected, (expected_state, _) = natural(TASK).loss(forward, PARAMS, STATE, (), batch, (), STEP, KEYS)
        assert_same((losses, state), (expected, expected_state))


def test_the_ball_may_grow_and_has_another_norm():
    growing = free_at(TASK, radius=warmed_up(constant(.1), steps=10), batch_size=SIZE)
    state = jnp.full((SIZE, *SHAPE), .1)
    crafted = crafted_by(growing, state, make_batch(), jnp.int32(5))
    assert abs(crafted['images'] - make_batch()['image']).max() <= .05 + 1e-6
    assert abs(crafted['next']).max() <= .05 + 1e-6
    round_ball = free_at(TASK, radius=constant(.3), batch_size=SIZE, norm='l2')
    crafted = crafted_by(round_ball, start(round_ball), make_batch())
    np.testing.assert_allclose(jnp.linalg.norm(crafted['next'].reshape(SIZE, -1), axis=1), .3, rtol=1e-4)


def test_training_steps_carry_it_in_the_state():
    mesh, optimizer = data_mesh(jax.devices()[:1]), create_optimizer('sgd', .1)
    state = create_state(forward, PARAMS, STATE, FREE, optimizer, num_train=SIZE, image_shape=SHAPE, seed=0,
                         mesh=mesh)
    step = make_train_step(forward, FREE, optimizer, augment=None, seed=0, ema_decay=None, mesh=mesh, replays=2)
    batch = jax.tree.map(np.asarray, make_batch())
    sizes = [float(abs(state.defense_state).max())]
    for _ in range(2):
        state, metrics = step(state, put_batch(mesh, batch))
        sizes.append(float(abs(state.defense_state).max()))
    assert sizes == [0.0, pytest.approx(.1), pytest.approx(.1)]
    assert step._cache_size() == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, metrics)))


def test_guided_complement_is_natural_training_with_its_loss():
    batch, defense = make_batch(), guided_complement(TASK, alpha=.5)
    assert defense.craft(forward, PARAMS, STATE, (), batch, STEP, KEYS) == ()
    losses, (state, metrics) = defense.loss(forward, PARAMS, STATE, (), batch, (), STEP, KEYS)
    outputs, expected_state = forward(PARAMS, STATE, batch['image'], batch_norm='train')
    assert_same((losses, state), (guided_complement_entropy(outputs, batch['label'], alpha=.5), expected_state))
    np.testing.assert_array_equal(metrics['accuracy'], TASK.acceptable(outputs, batch['label']))


def test_refusals():
    for options in ({'relative_step_size': 0.0}, {'batch_size': 0}):
        with pytest.raises(ValueError, match='must be positive'):
            free_at(TASK, **{'radius': constant(.1), 'batch_size': SIZE, **options})
    for task in (classification(2), ordinal(5)):
        with pytest.raises(ValueError, match='three classes or more, not for the task'):
            guided_complement(task)
    with pytest.raises(ValueError, match='alpha = -1'):
        guided_complement(TASK, alpha=-1.0)
