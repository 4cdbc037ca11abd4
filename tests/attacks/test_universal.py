"""Universal perturbations and patches: the step by hand, and that they fool images never seen."""
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.noise import noise
from medrobust_jax.attacks.patch import fixed_patch, shared_patch
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.universal import (
    UniversalBatch,
    additive,
    begin_universal,
    craft,
    fixed_perturbation,
    universal_step,
)
from medrobust_jax.core import rng
from medrobust_jax.core.types import Victim
from medrobust_jax.data.phantoms import render
from medrobust_jax.losses.classification import cross_entropy, prediction_is_right

SIZE, CLASSES = 16, 4


@pytest.fixture(scope='module')
def trained():
    """A small network trained on phantoms for a second, its victim, and both splits."""
    labels = {split: np.arange(number) % CLASSES for split, number in (('train', 512), ('held_out', 256))}
    images = {split: render(labels[split], stream=stream, size=SIZE).astype(np.float32) / 255
              for stream, split in enumerate(labels)}
    draws = np.random.default_rng(0)
    params = [draws.normal(size=shape).astype(np.float32) / np.sqrt(shape[0])
              for shape in ((SIZE * SIZE, 64), (64, CLASSES))]

    def logits(p, x):
        return jax.nn.relu(4 * (x.reshape(len(x), -1) - .3) @ p[0]) @ p[1]

    @jax.jit
    def train(p):
        def step(_, p):
            slope = jax.grad(lambda p: cross_entropy(logits(p, images['train']), labels['train']).mean())(p)
            return jax.tree.map(lambda a, g: a - .2 * g, p, slope)
        return jax.lax.fori_loop(0, 300, step, p)

    params = train(params)
    victim = Victim(lambda x, keys: logits(params, x), cross_entropy, prediction_is_right)
    return SimpleNamespace(victim=victim, images=images, labels=labels)


def batches_of(t, *, epochs, size=64):
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(t.labels['train']))
        for start in range(0, len(order), size):
            rows = order[start:start + size]
            yield UniversalBatch(rng.example_keys(0, rows), t.images['train'][rows], t.labels['train'][rows])


def standing(t, attack, eps):
    labels = t.labels['held_out']
    keys = rng.example_keys(9, np.arange(len(labels)))
    go = jax.jit(lambda k, x, y: run(attack, t.victim, k, x, y, eps=eps))
    return go(keys, t.images['held_out'], labels)


@pytest.mark.parametrize(('norm', 'eps'), [('linf', 16 / 255), pytest.param('l2', .7, marks=pytest.mark.long)])
def test_fools_held_out_images_more_than_noise(norm, eps, trained):
    shared = additive(norm=norm)
    state = craft(shared, trained.victim, batches_of(trained, epochs=4), key=jax.random.key(0),
                  image_shape=(SIZE, SIZE, 1), eps=eps)
    assert state.step == 32
    delta = np.asarray(state.parameters, np.float64).ravel()
    assert np.linalg.norm(delta, ord=np.inf if norm == 'linf' else 2) <= eps * (1 + 1e-5)
    clean = standing(trained, fixed_perturbation(np.zeros((SIZE, SIZE, 1))), eps).acceptable.mean()
    universal = standing(trained, fixed_perturbation(state.parameters, norm=norm), eps)
    signs = np.random.default_rng(0).choice([-1., 1.], size=(SIZE, SIZE, 1))
    signs *= eps / (1 if norm == 'linf' else SIZE)
    random = standing(trained, fixed_perturbation(signs, norm=norm), eps).acceptable.mean()
    worst_of_ten = standing(trained, noise(num_draws=10, norm=norm), eps).acceptable.mean()
    assert clean > .7
    assert universal.acceptable.mean() < min(random, worst_of_ten) - .1
    # A smaller ball holds a smaller perturbation.
    half = standing(trained, fixed_perturbation(state.parameters, norm=norm), eps / 2)
    size = (half.images - trained.images['held_out']).reshape(256, -1)
    assert np.linalg.norm(size, ord=np.inf if norm == 'linf' else 2, axis=1).max() <= eps / 2 * (1 + 1e-5)
    assert half.acceptable.mean() > universal.acceptable.mean()


@pytest.mark.long
def test_universal_patch_fools_held_out_images_more_than_noise(trained):
    state = craft(shared_patch(size=(5, 5)), trained.victim, batches_of(trained, epochs=4), key=jax.random.key(0),
                  image_shape=(SIZE, SIZE, 1), eps=1.)
    start = begin_universal(shared_patch(size=(5, 5)), jax.random.key(0), (SIZE, SIZE, 1), eps=1.).parameters
    assert state.parameters.shape == (5, 5, 1)
    assert state.parameters.min() >= 0
    assert state.parameters.max() <= 1
    found, before = (standing(trained, fixed_patch(p), .1) for p in (state.parameters, start))
    assert found.acceptable.mean() < before.acceptable.mean() - .03
    assert found.loss.mean() > before.loss.mean()


def test_step_by_hand_with_mask_and_bound(setting):
    s = setting((3, 3, 1), batch=6, classes=2, hidden=0, low=.3, high=.7)
    mask = np.array([True] * 4 + [False] * 2)
    losses = np.asarray(s.victim.loss(s.victim.forward(s.images, None), s.labels))[:4]
    eps, bound = .05, float(np.median(losses))
    state = begin_universal(additive(relative_step_size=.5), jax.random.key(0), (3, 3, 1), eps=eps)
    step = jax.jit(lambda state, eps, bound: universal_step(additive(relative_step_size=.5), s.victim, state,
                                                            UniversalBatch(s.keys, s.images, s.labels, mask),
                                                            eps=eps, loss_bound=bound))
    after = step(state, eps, bound)
    chosen = np.flatnonzero(losses < bound)
    assert len(chosen) == 2
    slope = jax.grad(lambda d: jnp.sum(s.victim.loss(s.victim.forward(s.images[chosen] + d, None),
                                                     s.labels[chosen])))(jnp.zeros((3, 3, 1)))
    np.testing.assert_allclose(after.parameters, .5 * eps * np.sign(slope), rtol=1e-6)
    assert after.loss == pytest.approx(np.minimum(losses, bound).mean(), rel=1e-5)
    for _ in range(4):
        after = step(after, eps, 9.)
    assert np.abs(after.parameters).max() == pytest.approx(eps)
    assert step._cache_size() == 1


def test_a_gradient_that_is_not_finite_does_no_harm(setting):
    s = setting((2, 2, 1), batch=2, hidden=0)
    broken = s.victim._replace(loss=lambda outputs, targets: s.victim.loss(outputs, targets) * jnp.nan)
    state = begin_universal(additive(norm='l2', start='ball'), jax.random.key(0), (2, 2, 1), eps=.1)
    step = jax.jit(partial(universal_step, additive(norm='l2'), broken, eps=.1))
    after = step(state, UniversalBatch(s.keys, s.images, s.labels))
    np.testing.assert_allclose(after.parameters, state.parameters, rtol=1e-6)


def test_refusals(setting):
    s = setting((4, 4, 1), batch=2)
    with pytest.raises(ValueError, match='at least one batch'):
        craft(additive(), s.victim, [], key=jax.random.key(0), image_shape=(4, 4, 1), eps=.1)
    with pytest.raises(ValueError, match='loss_bound = 0 must be positive'):
        craft(additive(), s.victim, [], key=jax.random.key(0), image_shape=(4, 4, 1), eps=.1, loss_bound=0)
    with pytest.raises(ValueError, match="did you mean 'zero'"):
        additive(start='zeros')
    with pytest.raises(ValueError, match='relative_step_size = 0'):
        additive(relative_step_size=0)
    with pytest.raises(ValueError, match='sizes >= 1'):
        shared_patch(size=(0, 3))
    with pytest.raises(ValueError, match='does not fit images'):
        run(fixed_perturbation(np.zeros((5, 4, 1))), s.victim, s.keys, s.images, s.labels, eps=.1)
