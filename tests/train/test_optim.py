"""Schedules against their closed forms, optimizers against hand-written updates."""
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medrobust_jax.train.optim import create_optimizer, create_schedule

STEPS = 100


def values(schedule):
    return np.array([float(schedule(jnp.asarray(t))) for t in range(STEPS + 1)])


def test_constant_with_warmup():
    np.testing.assert_allclose(values(create_schedule('constant', peak=0.3, steps=STEPS)), 0.3, rtol=1e-6)
    warm = values(create_schedule('constant', peak=0.3, steps=STEPS, warmup_steps=10))
    np.testing.assert_allclose(warm, 0.3 * np.minimum(np.arange(STEPS + 1) / 10, 1), rtol=1e-6)


@pytest.mark.parametrize('warmup', [0, 20])
def test_cosine_is_optax_cosine(warmup):
    ours = values(create_schedule('cosine', peak=0.1, steps=STEPS, warmup_steps=warmup, final=0.01))
    if warmup:
        theirs = optax.warmup_cosine_decay_schedule(0.0, 0.1, warmup, STEPS, end_value=0.01)
    else:
        theirs = optax.cosine_decay_schedule(0.1, STEPS, alpha=0.1)
    np.testing.assert_allclose(ours, values(theirs), rtol=1e-5, atol=1e-8)
    assert ours[-1] == pytest.approx(0.01)


def test_one_cycle_is_the_closed_form():
    ours = values(create_schedule('one_cycle', peak=0.1, steps=STEPS))
    def half_cosine(start, end, u):
        return end + (start - end) / 2 * (1 + math.cos(math.pi * u))
    expected = [half_cosine(0.004, 0.1, t / 25) if t < 25 else half_cosine(0.1, 0.004e-4, (t - 25) / 75)
                for t in range(STEPS + 1)]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-8)
    assert ours.argmax() == 25


def test_piecewise():
    ours = values(create_schedule('piecewise', peak=1.0, steps=STEPS, boundaries=(30, 60), factor=0.1))
    np.testing.assert_allclose(ours[[0, 29, 30, 59, 60, 100]], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def descend(optimizer, gradients, start):
    params = {'w': jnp.full((2, 2), start), 'b': jnp.full((2,), start)}
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(
            {'w': jnp.full((2, 2), gradient), 'b': jnp.full((2,), gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    return float(params['w'][0, 0]), float(params['b'][0])


def by_hand(name, gradients, w, *, r=0.1, c=0.01, momentum=0.9, nesterov=False):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        decoupled = name.endswith('w')
        g = g if decoupled else g + c * w
        if name.startswith('sgd'):
            m = momentum * m + g
            move = g + momentum * m if nesterov else m
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            move = (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w -= r * (move + (c * w if decoupled else 0.0))
    return w


@pytest.mark.parametrize('name', ['sgd', 'sgdw', 'adam', 'adamw'])
@pytest.mark.parametrize('nesterov', [False, True])
def test_updates_equal_the_equations(name, nesterov):
    gradients = (0.5, -0.2, 0.3)
    optimizer = create_optimizer(name, 0.1, weight_decay=0.01, nesterov=nesterov)
    expected = by_hand(name, gradients, 2.0, nesterov=nesterov and name.startswith('sgd'))
    np.testing.assert_allclose(descend(optimizer, gradients, 2.0), expected, rtol=1e-5)


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_decay_can_spare_biases(name):
    optimizer = create_optimizer(name, 0.1, weight_decay=0.01, decay_norm_and_bias=False)
    w, b = descend(optimizer, (0.5, 0.5), 2.0)
    np.testing.assert_allclose(w, by_hand(name, (0.5, 0.5), 2.0), rtol=1e-5)
    np.testing.assert_allclose(b, by_hand(name, (0.5, 0.5), 2.0, c=0.0), rtol=1e-5)


def test_the_gradient_is_clipped_before_decay():
    norm = 3.0 * math.sqrt(6)  # four weights and two biases of 3 each
    w, _ = descend(create_optimizer('sgd', 0.1, clip_norm=1.0, weight_decay=0.01), (3.0,), 2.0)
    assert w == pytest.approx(2.0 - 0.1 * (3.0 / norm + 0.01 * 2.0), rel=1e-5)


def test_a_schedule_drives_the_optimizer():
    schedule = create_schedule('piecewise', peak=1.0, steps=10, boundaries=(1,), factor=0.5)
    w, _ = descend(create_optimizer('sgd', schedule, momentum=0.0), (1.0, 1.0), 0.0)
    assert w == pytest.approx(-1.5)


@pytest.mark.parametrize(('call', 'message'), [
    (lambda: create_optimizer('adamv', 0.1), "did you mean 'adam"),
    (lambda: create_schedule('cosin', peak=1, steps=5), "did you mean 'cosine'"),
    (lambda: create_schedule('one_cycle', peak=1, steps=5, warmup_steps=2), 'warmup_steps to 0'),
    (lambda: create_schedule('piecewise', peak=1, steps=5, boundaries=(3, 2)), 'increasing'),
    (lambda: create_schedule('cosine', peak=1, steps=5, warmup_steps=5), 'warmup_steps < steps'),
    (lambda: create_optimizer('sgd', 0.1, weight_decay=-1), 'weight_decay >= 0'),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
