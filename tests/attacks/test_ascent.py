"""Ascent with steps and starts of its own per example, and the boundary that it crosses."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.ascent import ascent, bisect, sphere_noise, with_boundary
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import advance
from medrobust_jax.core import balls, rng
from medrobust_jax.core.types import Victim

BATCH, SHAPE = 4, (4, 4, 1)
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32)
SIZE = float(jnp.linalg.norm(WEIGHTS))
KEYS = rng.example_keys(0, jnp.arange(BATCH))
IMAGES = jnp.full((BATCH, *SHAPE), .5)
EPS = jnp.array([.1, .2, .3, .4])


def score(images):
    return (images.reshape(len(images), -1) - .5) @ WEIGHTS / SIZE


# The loss is the distance along the weights; what goes further than the target's value is not acceptable.
VICTIM = Victim(lambda images, keys: score(images), lambda outputs, limit: outputs,
                lambda outputs, limit: outputs <= limit)


def knobs(step=.05, start=.08):
    return {'step_size': jnp.full(BATCH, step), 'start_size': jnp.full(BATCH, start)}


@pytest.mark.parametrize('norm', ['l2', 'linf', 'l1'])
def test_noise_has_the_norm_asked_for(norm):
    noise = sphere_noise(KEYS, IMAGES, EPS, norm=norm)
    np.testing.assert_allclose(balls.norm_of(noise, norm=norm), EPS, rtol=1e-5)
    np.testing.assert_array_equal(noise[2:3], sphere_noise(KEYS[2:3], IMAGES[2:3], EPS[2:3], norm=norm))
    assert not sphere_noise(KEYS, IMAGES, jnp.zeros(BATCH), norm=norm).any()


def test_the_start_lies_in_the_ball_but_may_leave_the_box():
    attack = ascent(num_steps=1, start='sphere')
    state = attack.init(VICTIM, KEYS, jnp.ones_like(IMAGES), None, None, {'eps': EPS, **knobs(start=.25)})
    moved = balls.norm_of(state.images - 1, norm='l2')
    np.testing.assert_allclose(moved, [.1, .2, .25, .25], rtol=1e-4)
    assert state.images.max() > 1


def test_steps_are_absolute_and_end_on_the_sphere():
    limit = jnp.full(BATCH, 9.0)
    for num_steps, expected in ((1, [.05, .05, .05, .05]), (5, [.1, .2, .25, .25]), (20, EPS)):
        attack = ascent(num_steps=num_steps, start='clean')
        state = jax.jit(lambda a=attack: advance(a, VICTIM, KEYS, IMAGES, limit, eps=EPS, knobs=knobs()))()
        np.testing.assert_allclose(score(state.images), expected, rtol=1e-4)
        np.testing.assert_allclose(balls.norm_of(state.images - IMAGES, norm='l2'), expected, rtol=1e-4)


@pytest.mark.parametrize('norm', ['l2', 'linf'])
def test_relative_steps_are_pgd(norm):
    limit = jnp.full(BATCH, 9.0)
    mine, other = ascent(num_steps=3, norm=norm), pgd(num_steps=3, norm=norm, relative_step_size=.25)
    found = jax.jit(lambda: [advance(attack, VICTIM, KEYS, IMAGES, limit, eps=EPS, knobs={'step_size': .25 * EPS}
                                     ).images for attack in (mine, other)])()
    np.testing.assert_allclose(*found, atol=1e-6)


def test_both_sides_of_the_first_failure_are_kept():
    limit = jnp.array([.12, .01, 9.0, -1.0])  # crossed between .1 and .15; in the first step; never; by the start
    attack = with_boundary(ascent(num_steps=10, start='clean'))
    state, plain = jax.jit(lambda: [advance(each, VICTIM, KEYS, IMAGES, limit, eps=jnp.full(BATCH, .4),
                                            knobs=knobs())
                                    for each in (attack, ascent(num_steps=10, start='clean'))])()
    np.testing.assert_allclose(score(state.inner['ok'])[:2], [.1, 0], atol=1e-6)
    np.testing.assert_allclose(score(state.inner['fooling'])[:2], [.15, .05], atol=1e-6)
    np.testing.assert_array_equal(state.inner['ok'][3], IMAGES[3])
    np.testing.assert_array_equal(state.inner['fooling'][3], IMAGES[3])
    np.testing.assert_array_equal(state.acceptable, [False, False, True, False])
    np.testing.assert_allclose(state.images, plain.images, atol=1e-6)


def test_bisection_by_hand():
    low, high = jnp.zeros((2, 1)), jnp.ones((2, 1))
    for num_steps, expected in ((0, [.5, .5]), (1, [.25, .75]), (2, [.375, .875]), (10, [.3, .9])):
        middle = bisect(lambda x: x[:, 0] <= jnp.array([.3, .9]), low, high, num_steps=num_steps)
        np.testing.assert_allclose(middle[:, 0], expected, atol=2**-11 if num_steps == 10 else 0)


def test_refusals():
    with pytest.raises(ValueError, match="unknown start 'spere'; did you mean 'sphere'"):
        ascent(start='spere')
    with pytest.raises(ValueError, match='num_steps = 0'):
        ascent(num_steps=0)
    with pytest.raises(ValueError, match='unknown norm'):
        ascent(norm='l3')
