"""NES and SPSA: estimates against known gradients, ascent against PGD's optimum, memory in parts."""
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.estimation import estimate, estimated_gradient_ascent, nes, spsa
from medrobust_jax.attacks.run import begin, run
from medrobust_jax.core.types import Victim
from medrobust_jax.evaluate.passes import Passes, passes_of
from medrobust_jax.losses.classification import margin, prediction_is_right


@pytest.fixture
def linear(setting):
    """A linear model of two classes with the margin as loss, and the loss's gradient `[B, 4, 4, 1]`."""
    s = setting(classes=2, hidden=0, low=.3, high=.7)
    s.victim = s.victim._replace(loss=margin)
    away = np.where(np.asarray(s.labels) == 1, -1, 1)[:, None] * (s.w1[:, 1] - s.w1[:, 0])
    s.gradient = away.reshape(s.images.shape)
    return s


def cosine(a, b):
    a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize('noise', ['normal', 'signs'])
def test_estimates_converge_to_the_gradient_of_a_linear_model(noise, linear):
    s = linear

    @jax.jit
    def many(keys):
        return [estimate(s.victim, keys, s.images, s.labels, num_pairs=pairs, sigma=.01, noise=noise)
                for pairs in (8, 800)]

    few, most = (np.asarray(e) for e in many(s.keys))
    # n pairs in d = 16 dimensions: the cosine is about sqrt(n / (n + d)), the length is right on average.
    assert .3 < cosine(few, s.gradient).mean() < .85
    assert cosine(most, s.gradient).min() > .97
    size = np.linalg.norm(most.reshape(8, -1), axis=1) / np.linalg.norm(s.gradient.reshape(8, -1), axis=1)
    np.testing.assert_allclose(size, 1, atol=.15)


def test_queries_are_antithetic_share_the_models_noise_and_stay_in_the_box(setting):
    s = setting(batch=3)
    images = s.images.at[:, 0].set(1.0)
    seen = []

    def forward(x, keys):
        seen.append((np.asarray(x).reshape(2, 5, 3, 4, 4, 1),
                     np.asarray(jax.random.key_data(keys)).reshape(2, 5, 3, -1)))
        return x.reshape(len(x), -1).sum(axis=1)

    victim = Victim(forward, lambda z, y: z + 1000 * y, None)
    found = estimate(victim, s.keys, images, jnp.arange(3), num_pairs=5, sigma=.05, noise='signs')
    (queries, keys), = seen
    np.testing.assert_array_equal(keys[0], keys[1])
    assert len(np.unique(keys[0].reshape(15, -1), axis=0)) == 15
    assert queries.max() <= 1
    inner = np.asarray(images)[:, 1:]
    inside = (inner > .05) & (inner < .95)
    reach = queries[:, :, :, 1:] - inner
    np.testing.assert_allclose(np.abs(reach)[np.broadcast_to(inside, reach.shape)], .05, atol=1e-6)
    np.testing.assert_allclose((reach[0] + reach[1])[:, inside], 0, atol=1e-6)
    assert len(np.unique(np.sign(reach[0]).reshape(15, -1), axis=0)) == 15
    # The estimate, by the formula, from what was asked; targets meet their own examples' queries.
    sums = queries.reshape(2, 5, 3, -1).sum(-1)
    expected = np.einsum('pb,pb...->b...', sums[0] - sums[1], (queries[0] - queries[1]) / 2) / (10 * .05**2)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=.5)


@pytest.mark.parametrize(('attack', 'norm', 'eps', 'share'), [
    (nes(num_steps=30, num_samples=100, sigma=.01), 'linf', .1, .9),
    (spsa(num_steps=30, num_samples=100, norm='l2'), 'l2', .3, .9)], ids=['nes', 'spsa'])
def test_comes_near_the_optimum_of_a_linear_model_in_ball_and_box(attack, norm, eps, share, linear, norms,
                                                                  found_and_last):
    s = linear
    radius = np.linspace(0, eps, 8).astype(np.float32)
    found, last = found_and_last(attack, s, eps=jnp.asarray(radius))
    for images in (found.images, last):
        assert np.all(norms(images - s.images, norm) <= radius * (1 + 1e-5) + 1e-6)
        assert images.min() >= 0
        assert images.max() <= 1
        np.testing.assert_array_equal(images[0], s.images[0])
    gain = np.asarray(found.loss - s.victim.loss(s.victim.forward(s.images, None), s.labels))
    optimum = radius * norms(s.gradient, {'linf': 'l1', 'l2': 'l2'}[norm])
    assert np.all(gain <= optimum * (1 + 1e-4) + 1e-5)
    assert np.all(gain >= share * optimum - 1e-5)


def test_parts_move_together_and_use_all_samples(linear):
    s = linear
    attack = nes(num_steps=4, num_samples=60, sigma=.01, norm='l2', relative_step_size=.1, samples_per_look=20)
    assert attack.num_steps == 12
    assert passes_of(attack, s.victim, image_shape=(4, 4, 1), targets=s.labels[:1]) == Passes(21, 0, 1)
    step = jax.jit(partial(attack.step, s.victim))
    states = [begin(attack, s.victim, s.keys, s.images, s.labels, eps=.3)]
    for _ in range(6):
        states.append(step(s.images, s.labels, states[-1]))
    moved = [bool(np.any(a.images != b.images)) for a, b in itertools.pairwise(states)]
    assert moved == [False, False, True] * 2
    gradients = [np.asarray(state.inner[0]) for state in states[1:]]
    parts = [gradients[0], gradients[1] - gradients[0], gradients[2] - gradients[1]]
    assert min(abs(part).max() for part in parts) > .1
    assert abs(np.corrcoef(np.stack(parts).reshape(3, -1)) - np.eye(3)).max() < .95  # drawn anew for each part
    way = np.asarray(states[3].images - states[0].images)
    np.testing.assert_allclose(cosine(way, gradients[2]), 1, atol=1e-4)
    # A new estimate begins after a move.
    assert cosine(gradients[3] - gradients[2], gradients[3]).min() < .99


def test_examples_at_different_iterations_are_as_alone(setting, as_alone):
    as_alone(spsa(num_steps=10, num_samples=8, samples_per_look=4), setting(batch=6), head_start=5, steps=5)


def test_needs_no_gradient_and_runs_in_float64(setting):
    with jax.enable_x64(True):
        s = setting(batch=16, classes=2, dtype=np.float64)
        net = s.victim.forward
        victim = s.victim._replace(forward=lambda x, k: jnp.round(50 * jax.lax.stop_gradient(net(x, k))) / 50)
        clean = victim.acceptable(victim.forward(s.images, s.keys), s.labels)
        attack = nes(num_steps=10, num_samples=40, sigma=.05)
        result = jax.jit(partial(run, attack, victim, eps=.3))(s.keys, s.images, s.labels)
        assert result.images.dtype == jnp.float64
        assert result.acceptable.mean() < clean.mean() - .3


def test_infinite_losses_do_not_spread(setting):
    s = setting(batch=4)
    victim = Victim(lambda x, k: x.reshape(len(x), -1), lambda z, y: jnp.where(z[:, 0] > .5, jnp.inf, z[:, 1]),
                    prediction_is_right)
    images = s.images.at[:, 0, 0, 0].set(.5)  # one query of every pair is infinite
    found = jax.jit(partial(estimate, victim, num_pairs=4, sigma=.01, noise='normal'))(s.keys, images, s.labels)
    np.testing.assert_array_equal(found, 0)


def test_refusals():
    for options, message in (({'num_samples': 5}, 'even num_samples'), ({'samples_per_look': 30}, 'divides it'),
                             ({'samples_per_look': 25}, 'even samples_per_look'), ({'sigma': 0.}, 'sigma > 0'),
                             ({'num_steps': 0}, 'at least 1'), ({'norm': 'inf'}, "did you mean 'linf'")):
        with pytest.raises(ValueError, match=message):
            nes(**options)
    with pytest.raises(ValueError, match="did you mean 'normal'"):
        estimated_gradient_ascent(num_steps=1, num_samples=2, sigma=.1, noise='normall')
