"""Transfer: to oneself it is the attack itself, submissions are counted, wrappers mean the same on both sides."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.hopskipjump import hopskipjump
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import begin
from medrobust_jax.attacks.transfer import transfer
from medrobust_jax.attacks.wrappers import averaged_over, restarts, stop_when_fooled, targeted, with_loss
from medrobust_jax.core.transforms import identity
from medrobust_jax.evaluate.passes import Passes, passes_of
from medrobust_jax.losses.classification import margin


@pytest.fixture
def two(setting):
    """A victim with its batch, and a surrogate that is its first layer's neighbor."""
    s = setting(batch=12)
    draws = np.random.default_rng(7)
    w1, w2 = (w + .4 * draws.normal(size=w.shape).astype(np.float32) for w in (s.w1, s.w2))
    s.surrogate = lambda images, keys: jnp.tanh((images.reshape(len(images), -1) - .5) @ w1) @ w2
    s.labels = s.victim.forward(s.images, None).argmax(-1)
    return s


def iterates_on(s, attack, forward, eps):
    """The images that `attack` makes on a forward function: `[looks, B, ...]`, the last after all moves."""
    victim = attack.adapt(s.victim._replace(forward=forward))
    state = begin(attack, victim, s.keys, s.images, s.labels, eps=eps)
    step, found = jax.jit(partial(attack.step, victim)), [state.images]
    for _ in range(attack.num_steps):
        state = step(s.images, s.labels, state)
        found.append(state.images)
    return jnp.stack(found), step(s.images, s.labels, state)


def test_to_oneself_is_the_attack(two, found_by):
    attack = pgd(num_steps=6)
    plain = found_by(attack, two, eps=.1)
    best, every = (found_by(transfer(attack, two.victim.forward, submit=submit), two, eps=.1)
                   for submit in ('best', 'every'))
    for found in (best, every):
        np.testing.assert_allclose(found.images, plain.images, atol=1e-6)
        np.testing.assert_allclose(found.loss, plain.loss, rtol=1e-4)
        np.testing.assert_array_equal(found.acceptable, plain.acceptable)
    np.testing.assert_array_equal(every.first_fooled, plain.first_fooled)
    np.testing.assert_array_equal(best.first_fooled[~plain.acceptable], 7)  # a single attempt, after all moves


def test_what_is_submitted_and_judged(two, found_by, norms):
    s, attack = two, pgd(num_steps=6, norm='l2')
    eps = jnp.linspace(0, .8, 12)
    iterates, crafted = iterates_on(s, attack, s.surrogate, eps)
    best = found_by(transfer(attack, s.surrogate), s, eps=eps)
    every = found_by(transfer(attack, s.surrogate, submit='every'), s, eps=eps)
    np.testing.assert_allclose(best.images, crafted.best_images, atol=1e-6)
    right = np.stack([s.victim.forward(x, None).argmax(-1) == s.labels for x in [*iterates, crafted.best_images]])
    np.testing.assert_array_equal(best.acceptable, right[-1])
    np.testing.assert_array_equal(every.acceptable, right.all(axis=0))
    assert 0 < best.acceptable.sum() < 12
    for found in (best, every):
        logits = s.victim.forward(found.images, None)
        np.testing.assert_allclose(found.loss, s.victim.loss(logits, s.labels), rtol=1e-4, atol=1e-6)
        assert np.all(norms(found.images - s.images, 'l2') <= np.asarray(eps) * (1 + 1e-5) + 1e-6)
    assert np.all(np.asarray(every.acceptable) <= np.asarray(best.acceptable))


def test_wrappers_of_the_loss_mean_the_same_inside_and_outside(two, found_by, same_bits):
    s, attack = two, pgd(num_steps=6)
    s.labels = (s.labels + 1) % 3
    inside = found_by(transfer(targeted(with_loss(attack, margin)), s.surrogate), s, eps=.4)
    outside = found_by(targeted(with_loss(transfer(attack, s.surrogate), margin)), s, eps=.4)
    same_bits(inside, outside)
    logits = s.victim.forward(inside.images, None)
    np.testing.assert_allclose(inside.loss, -margin(logits, s.labels), rtol=1e-4, atol=1e-5)
    reached = logits.argmax(-1) == s.labels
    np.testing.assert_array_equal(reached, ~np.asarray(inside.acceptable))
    assert reached.mean() > .5


@pytest.mark.long
def test_minimum_norm_attacks_and_those_that_stop_submit_what_they_found(two, found_by, same_bits):
    s = two
    found = found_by(transfer(hopskipjump(num_queries=150), s.surrogate), s, eps=jnp.full(12, 1.5))
    assert np.all(np.linalg.norm((found.images - s.images).reshape(12, -1), axis=1) <= 1.5 + 1e-5)
    logits = s.surrogate(found.images, None)
    moved = np.any(np.asarray(found.images != s.images), axis=(1, 2, 3))
    assert moved.any()
    np.testing.assert_array_equal(logits.argmax(-1)[moved] != s.labels[moved], True)
    stopped = stop_when_fooled(pgd(num_steps=6))
    _, crafted = iterates_on(s, stopped, s.surrogate, .1)
    assert 0 < crafted.done.sum() < 12
    np.testing.assert_allclose(found_by(transfer(stopped, s.surrogate), s, eps=.1).images, crafted.best_images,
                               atol=1e-6)


def test_examples_at_different_iterations_are_as_alone(two, same_bits):
    s = two
    attack = restarts(transfer(stop_when_fooled(pgd(num_steps=3)), s.surrogate), 2)
    step = jax.jit(partial(attack.step, s.victim))
    history = [begin(attack, s.victim, s.keys, s.images, s.labels, eps=.05)]
    for _ in range(8):
        history.append(step(s.images, s.labels, history[-1]))
    late = np.arange(12) % 2 == 1

    def mixed(a, b):
        return jax.tree.map(lambda x, y: jnp.where(late.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b)

    state = mixed(history[3], history[0])
    for _ in range(5):
        state = step(s.images, s.labels, state)
    expected = mixed(history[8], history[5])
    for name in ('images', 'best_images', 'best_loss', 'acceptable', 'first_fooled', 'done', 'step'):
        same_bits(getattr(state, name), getattr(expected, name))


def test_victims_passes_are_counted_and_samples_go_inside(two, found_by):
    s, attack = two, averaged_over(pgd(num_steps=3, start='clean'), identity, num_samples=2)
    passes = partial(passes_of, victim=s.victim, image_shape=(4, 4, 1), targets=s.labels[:1])
    assert passes(transfer(pgd(), s.surrogate)) == Passes(1, 0, 1)
    found = found_by(transfer(attack, s.surrogate), s, eps=.1)
    plain = found_by(transfer(pgd(num_steps=3, start='clean'), s.surrogate), s, eps=.1)
    np.testing.assert_allclose(found.images, plain.images, atol=1e-6)
    with pytest.raises(ValueError, match='averaged_over belongs inside'):
        found_by(averaged_over(transfer(pgd(), s.surrogate), identity, num_samples=2), s, eps=.1)
    with pytest.raises(ValueError, match=r'\(12, 5\), the victim'):
        found_by(transfer(pgd(), lambda x, k: jnp.zeros((len(x), 5))), s, eps=.1)
    with pytest.raises(ValueError, match="did you mean 'best'"):
        transfer(pgd(), s.surrogate, submit='bst')
