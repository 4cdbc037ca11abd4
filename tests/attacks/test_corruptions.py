"""Corruptions as attacks: the worst of n, the worst bias field by gradients."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.corruptions import adversarial_bias_field, corruption
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.wrappers import restarts, stop_when_fooled
from medrobust_jax.core import degradations
from medrobust_jax.core.corruptions import CORRUPTIONS, DETERMINISTIC, level_of


@pytest.mark.parametrize('name', ['gaussian_noise', 'bias_field', 'contrast'])
def test_worst_of_n_never_weakens_with_n(name, setting, found_by):
    s = setting((6, 6, 1), batch=16)
    few, many = (found_by(corruption(name, num_draws=n), s, eps=4.) for n in (2, 8))
    assert np.all(~np.asarray(many.acceptable) | np.asarray(few.acceptable))
    same = np.asarray(many.acceptable == few.acceptable)
    assert np.all(np.asarray(many.loss)[same] >= np.asarray(few.loss)[same] - 1e-6)
    if name in DETERMINISTIC:
        np.testing.assert_array_equal(many.images, few.images)
        np.testing.assert_allclose(many.images, CORRUPTIONS[name](s.keys, s.images, jnp.full(16, 4.)), atol=1e-6)
    else:
        assert np.any(np.asarray(many.loss) > np.asarray(few.loss))


def test_severity_is_per_example_and_costs_no_compilation(setting):
    s = setting((6, 6, 1), batch=6)
    go = jax.jit(partial(run, corruption('speckle_noise', num_draws=3), s.victim))
    found = go(s.keys, s.images, s.labels, eps=jnp.linspace(0, 5, 6))
    np.testing.assert_array_equal(found.images[0], s.images[0])
    size = np.abs(np.asarray(found.images - s.images)).mean(axis=(1, 2, 3))
    assert size[0] == 0 < size[1] < size[5]
    go(s.keys, s.images, s.labels, eps=jnp.linspace(1, 2, 6))
    assert go._cache_size() == 1


def test_deterministic_corruptions_look_once():
    for name in CORRUPTIONS:
        assert corruption(name, num_draws=7).num_steps == (0 if name in DETERMINISTIC else 6)


def test_bias_field_climbs_and_stays_a_bias_field(setting, found_and_last):
    s = setting((8, 8, 1), batch=16, low=.3)
    severity = jnp.full(16, 3.)
    climbed, last = found_and_last(adversarial_bias_field(num_steps=15), s, eps=severity)
    drawn, _ = found_and_last(corruption('bias_field', num_draws=15), s, eps=severity)
    assert np.mean(climbed.loss) > np.mean(drawn.loss)
    assert climbed.acceptable.sum() <= drawn.acceptable.sum()
    basis = degradations.bias_basis((8, 8), 3)
    columns = np.concatenate([np.ones((1, 8, 8)), basis]).reshape(10, -1).T
    strength = float(level_of('bias_field', severity)[0])
    for image, clean in zip(np.asarray(last, np.float64), np.asarray(s.images, np.float64), strict=True):
        gain = np.log(image / clean).ravel()
        solved, residual, *_ = np.linalg.lstsq(columns, gain, rcond=None)
        assert residual[0] < 1e-6
        assert np.abs(columns[:, 1:] @ solved[1:]).max() == pytest.approx(strength, rel=1e-3)
    assert last.min() >= 0
    assert last.max() <= 1


def test_bias_field_of_volumes_per_example_and_zero_severity(setting, same_bits):
    s = setting((4, 3, 5, 1), classes=2)
    go = jax.jit(partial(run, restarts(adversarial_bias_field(num_steps=2, order=2), 2), s.victim))
    eps, order = jnp.linspace(0, 4, 8), np.random.default_rng(5).permutation(8)
    plain = go(s.keys, s.images, s.labels, eps=eps)
    permuted = go(s.keys[order], s.images[order], s.labels[order], eps=eps[order])
    same_bits(jax.tree.map(lambda a: a[order], plain), permuted)
    np.testing.assert_array_equal(plain.images[0], s.images[0])
    assert np.all(np.any(plain.images[1:] != s.images[1:], axis=(1, 2, 3, 4)))


@pytest.mark.long
def test_one_call_more_is_harmless(setting):
    s = setting((6, 6, 1), batch=4)
    for attack in (corruption('gamma', num_draws=2), stop_when_fooled(adversarial_bias_field(num_steps=1))):
        def pooled(keys, images, labels, attack=attack):
            state = attack.init(s.victim, keys, images, labels, None, {'eps': jnp.full(4, 3.)})
            for _ in range(attack.num_steps + 1):
                state = attack.step(s.victim, images, labels, state)
            return state

        state = jax.jit(pooled)(s.keys, s.images, s.labels)
        expected = jax.jit(partial(run, attack, s.victim, eps=3.))(s.keys, s.images, s.labels)
        np.testing.assert_array_equal(state.acceptable, expected.acceptable)
        np.testing.assert_allclose(state.best_images, expected.images, atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="did you mean 'gaussian_blur'"):
        corruption('gausian_blur')
    with pytest.raises(ValueError, match='num_draws = 0 must be at least 1'):
        corruption('jpeg', num_draws=0)
    with pytest.raises(ValueError, match='num_steps and order'):
        adversarial_bias_field(order=0)
    with pytest.raises(ValueError, match='relative_step_size = 0 must be positive'):
        adversarial_bias_field(relative_step_size=0)
