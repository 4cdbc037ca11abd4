"""The out-of-distribution attack: a replay in NumPy, the geometry, wanted outputs reached, refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.ood import ood, pgd_adamax, reaching
from medrobust_jax.attacks.registry import create_attack
from medrobust_jax.attacks.run import advance, begin, run
from medrobust_jax.core import rng
from medrobust_jax.core.types import Victim
from medrobust_jax.losses import shape

GENERATOR = np.random.default_rng(0)
WEIGHTS = GENERATOR.normal(size=(16, 6)).astype(np.float32)
IMAGES = GENERATOR.uniform(size=(4, 4, 4, 1)).astype(np.float32)
WANTED = (GENERATOR.uniform(size=(4, 16)).astype(np.float32) - .5) @ WEIGHTS
KEYS = rng.example_keys(0, jnp.arange(4))


def forward(images, keys):
    return (images.reshape(len(images), -1) - .5) @ WEIGHTS


def distance(outputs, wanted):
    return jnp.square(outputs - wanted).sum(-1)


def test_moves_are_adamax_on_normalized_gradients():
    rho, steps = 1.2, 25
    state = jax.jit(lambda: advance(ood(num_steps=steps, start='clean', learning_rate=.05),
                                    reaching(forward, distance), KEYS, IMAGES, WANTED, eps=rho))()
    x, w = IMAGES.reshape(4, 16).astype(np.float64), WEIGHTS.astype(np.float64)
    d, m, u = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        g = -2 * ((x + d - .5) @ w - WANTED) @ w.T
        g = g / np.linalg.norm(g, axis=1, keepdims=True)
        m, u = .9 * m + .1 * g, np.maximum(.999 * u, abs(g) + 1e-8)
        d = np.clip(d + .05 * m / (1 - .9**t) / u, -1, 1)
        d = d * np.minimum(1, rho / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-12))
        d = np.clip(x + d, 0, 1) - x
    np.testing.assert_allclose(state.images.reshape(4, 16), x + d, atol=1e-4)


def test_the_attack_inside_the_distribution_is_adamax_on_signs():
    eps, steps = .2, 15
    victim = Victim(forward, distance, lambda outputs, targets: jnp.ones(4, bool))
    state = jax.jit(lambda: advance(pgd_adamax(num_steps=steps, start='clean'), victim, KEYS, IMAGES, WANTED,
                                    eps=eps))()
    x, w = IMAGES.reshape(4, 16).astype(np.float64), WEIGHTS.astype(np.float64)
    d, m, u = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        g = np.sign(((x + d - .5) @ w - WANTED) @ w.T)
        m, u = .9 * m + .1 * g, np.maximum(.999 * u, 1 + 1e-8)
        d = np.clip(np.clip(d + .2 * eps * m / (1 - .9**t) / u, -eps, eps) + x, 0, 1) - x
    np.testing.assert_allclose(state.images.reshape(4, 16), x + d, atol=1e-5)


def test_wanted_outputs_are_reached_inside_ball_and_box():
    tolerance = .02
    victim = reaching(forward, distance, tolerance=tolerance)
    found = {eps: jax.jit(lambda radius: run(ood(num_steps=200), victim, KEYS, IMAGES, WANTED, eps=radius))(eps)
             for eps in (.05, 3.)}
    for eps, result in found.items():
        away = np.asarray(result.images - IMAGES, np.float64).reshape(4, -1)
        assert (np.linalg.norm(away, axis=1) <= eps * (1 + 1e-5)).all()
        assert result.images.min() >= 0
        assert result.images.max() <= 1
        again = distance(forward(result.images, None), WANTED)
        np.testing.assert_allclose(-result.loss, again, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(result.acceptable, -result.loss > tolerance)
    assert found[.05].acceptable.all()
    assert not found[3.].acceptable.any()
    assert reaching(lambda x, k: x, distance).acceptable(jnp.array([[jnp.nan]]), jnp.zeros((1, 1))).all()


def test_examples_at_other_iterations_and_places_are_as_alone():
    victim, attack = reaching(forward, distance), ood(num_steps=6)
    step = jax.jit(lambda x, w, s: attack.step(victim, x, w, s))

    def after(count, rows):
        state = begin(attack, victim, KEYS[rows], IMAGES[rows], WANTED[rows], eps=1.)
        for _ in range(count):
            state = step(IMAGES[rows], WANTED[rows], state)
        return state

    order = np.array([2, 0, 3, 1])
    straight, ahead = after(3, np.arange(4)), after(5, np.arange(4))
    np.testing.assert_allclose(after(3, order).images, straight.images[order], atol=1e-6)
    late = jnp.arange(4) % 2 == 1
    mixed = jax.tree.map(lambda a, b: jnp.where(late.reshape(-1, *[1] * (a.ndim - 1)), a, b),
                         after(2, np.arange(4)), after(0, np.arange(4)))
    for _ in range(3):
        mixed = step(IMAGES, WANTED, mixed)
    np.testing.assert_allclose(mixed.images, jnp.where(late[:, None, None, None], ahead.images, straight.images),
                               atol=1e-6)


def shape_forward(images, keys):
    flat = images.reshape(len(images), -1)
    return {'points': .5 + .1 * jnp.tanh(flat @ WEIGHTS).reshape(-1, 3, 2), 'mask': 20 * (images[..., 0] - .5)}


def test_the_shape_attacks_climb_what_they_say():
    truth = {'points': jnp.full((4, 3, 2), .5), 'segmentation': jnp.asarray(IMAGES[..., 0] > .5).astype(jnp.int32)}
    victim = Victim(shape_forward, shape.shape_loss, lambda o, t: jnp.ones(4, bool))
    for name, loss in (('points', shape.shape_regression_attack_loss), ('mask', shape.shape_mask_attack_loss)):
        attack = create_attack(f'pgd_adamax_{name}', num_steps=20)
        result = jax.jit(lambda a=attack: run(a, victim, KEYS, IMAGES, truth, eps=.1))()
        assert (result.loss > loss(shape_forward(IMAGES, None), truth)).all()
        assert np.abs(np.asarray(result.images) - IMAGES).max() <= .1 + 1e-6
    wanted = jax.jit(shape_forward)(1 - IMAGES, None)
    found = jax.jit(lambda: run(ood(num_steps=150), reaching(shape_forward, shape.output_distance), KEYS, IMAGES,
                                wanted, eps=4.))()
    before = shape.output_distance(shape_forward(IMAGES, None), wanted)
    assert (-found.loss < .5 * before).all()


def test_refusals():
    with pytest.raises(ValueError, match='learning_rate = 0'):
        ood(learning_rate=0)
    with pytest.raises(ValueError, match='num_steps = 0'):
        ood(num_steps=0)
    with pytest.raises(ValueError, match="unknown norm 'l3'"):
        ood(norm='l3')
