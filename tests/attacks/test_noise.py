"""Random noise: which images are looked at, that the worst is kept, and that no gradient is asked for."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.noise import noise
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.wrappers import restarts, stop_when_fooled
from medrobust_jax.core.balls import NORMS


def looked_at(attack, s, eps):
    """The images that the model was shown, `[looks, B, ...]`, and the result."""
    seen = []

    def forward(images, keys):
        jax.debug.callback(lambda shown: seen.append(np.asarray(shown)), images, ordered=True)
        return s.victim.forward(images, keys)

    victim = s.victim._replace(forward=forward)
    result = jax.jit(partial(run, attack, victim, eps=eps))(s.keys, s.images, s.labels)
    jax.effects_barrier()
    return np.stack(seen), result


@pytest.mark.parametrize('num_draws', [1, 2, 5])
def test_result_is_the_worst_of_the_draws(num_draws, setting):
    s = setting(batch=16)
    seen, result = looked_at(noise(num_draws=num_draws), s, .4)
    assert len(seen) == num_draws
    logits = [s.victim.forward(images, None) for images in seen]
    losses = np.stack([s.victim.loss(z, s.labels) for z in logits])
    right = np.stack([s.victim.acceptable(z, s.labels) for z in logits])
    # Among the draws that fool the model, or among all where none does, the one with the highest loss.
    worst = np.where(right & ~right.all(axis=0), -np.inf, losses).argmax(axis=0)
    np.testing.assert_array_equal(result.images, seen[worst, np.arange(16)])
    np.testing.assert_allclose(result.loss, losses[worst, np.arange(16)], rtol=1e-5)
    np.testing.assert_array_equal(result.acceptable, right.all(axis=0))
    np.testing.assert_array_equal(result.first_fooled, np.where(right.all(axis=0), -1, (~right).argmax(axis=0)))


def test_draws_are_uniform_and_independent(setting):
    s = setting((8, 8, 1), batch=4, low=.5, high=.5)  # far from the box
    seen, _ = looked_at(noise(num_draws=50), s, .2)
    delta = (seen - np.asarray(s.images)).reshape(50 * 4, 64)
    assert np.abs(delta).max() <= .2 + 1e-6
    assert delta.mean() == pytest.approx(0, abs=.005)
    assert delta.std() == pytest.approx(.2 / np.sqrt(3), rel=.02)
    correlation = np.corrcoef(delta)
    assert np.abs(correlation - np.eye(200)).max() < .65  # 5 standard deviations; equal draws have 1


@pytest.mark.parametrize('norm', NORMS)
def test_more_draws_are_never_weaker(norm, setting, same_bits):
    s = setting(batch=16)
    eps = {'linf': .3, 'l2': 1., 'l1': 3.}[norm]
    few, result = looked_at(noise(num_draws=2, norm=norm), s, eps)
    many, stronger = looked_at(noise(num_draws=9, norm=norm), s, eps)
    same_bits(few, many[:2])
    assert np.all(~np.asarray(stronger.acceptable) | np.asarray(result.acceptable))
    same = np.asarray(stronger.acceptable == result.acceptable)
    assert np.all(np.asarray(stronger.loss)[same] >= np.asarray(result.loss)[same])
    assert np.any(np.asarray(stronger.loss) > np.asarray(result.loss))


def test_gaussian_noise_has_the_deviation_asked_for_and_is_not_projected(setting):
    s = setting((8, 8, 1), batch=4, low=.5, high=.5)
    seen, _ = looked_at(noise(num_draws=50, distribution='gaussian'), s, .05)
    delta = (seen - np.asarray(s.images)).reshape(200, 64)
    assert delta.mean() == pytest.approx(0, abs=.002)
    assert delta.std() == pytest.approx(.05, rel=.02)
    assert np.abs(delta).max() > .15
    assert np.abs(np.corrcoef(delta) - np.eye(200)).max() < .65


def test_restarts_draw_anew(setting):
    s = setting(batch=2)
    seen, _ = looked_at(restarts(noise(num_draws=3), 2), s, .2)
    assert len(np.unique(seen.reshape(6, -1), axis=0)) == 6


def test_stops_once_fooled(setting):
    s = setting(batch=4)
    s.labels = (s.victim.forward(s.images, None).argmax(-1) + 1) % 3  # all wrong from the start
    seen, result = looked_at(stop_when_fooled(noise(num_draws=50)), s, 1e-4)
    assert len(seen) == 2  # one look, and the last one
    assert np.all(result.first_fooled == 0)


def test_asks_for_no_gradient(setting):
    s = setting(batch=4)

    def refuse(*args):
        raise AssertionError('noise asked for a gradient')

    forward = jax.custom_vjp(s.victim.forward)
    forward.defvjp(refuse, refuse)
    victim = s.victim._replace(forward=forward)
    run(noise(num_draws=3), victim, s.keys, s.images, s.labels, eps=.1)
    with pytest.raises(AssertionError, match='asked for a gradient'):
        run(pgd(num_steps=3), victim, s.keys, s.images, s.labels, eps=.1)


@pytest.mark.parametrize('norm', NORMS)
def test_gradients_beat_noise_on_a_linear_model(norm, setting, found_by):
    s = setting(batch=32, classes=2, hidden=0, low=.3, high=.7)
    eps = {'linf': .1, 'l2': .4, 'l1': 1.}[norm]
    climbed = found_by(pgd(num_steps=20, norm=norm), s, eps=eps)
    drawn = found_by(noise(num_draws=20, norm=norm), s, eps=eps)
    assert np.all(drawn.loss < climbed.loss)
    assert jnp.mean(drawn.acceptable) > jnp.mean(climbed.acceptable)


def test_refusals():
    with pytest.raises(ValueError, match='num_draws = 0 must be at least 1'):
        noise(num_draws=0)
    with pytest.raises(ValueError, match="did you mean 'linf'"):
        noise(norm='inf')
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        noise(distribution='gausian')
