"""The bookkeeping of an attack, against a loop in Python; NaN; the ways to run."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import looks
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import perturb, run, run_on_host
from medrobust_jax.attacks.stabilized import smia
from medrobust_jax.attacks.wrappers import restarts, stop_when_fooled
from medrobust_jax.core.types import Victim

NAN = float('nan')


def replay(losses, verdicts):
    """The records after looks with these losses and verdicts, one example, in plain Python."""
    best, best_look, fooled_best, first, count = -np.inf, 0, False, -1, 0
    for look, (loss, acceptable) in enumerate(zip(losses, verdicts, strict=True)):
        loss = -np.inf if np.isnan(loss) else loss
        better = loss > best if fooled_best == (not acceptable) else not acceptable
        if better:
            best, best_look = loss, look
        fooled_best |= not acceptable
        if not acceptable and first < 0:
            first = look
        count += acceptable
    return best, best_look, not fooled_best, first, count


def recorded(losses, verdicts):
    losses, verdicts = np.asarray(losses, np.float32), np.asarray(verdicts)
    state = looks.start_state(jax.random.split(jax.random.key(0), len(losses)), jnp.zeros((len(losses), 1, 1)),
                              {'eps': jnp.ones(len(losses))})
    record = jax.jit(looks.record)
    for look in range(losses.shape[1]):
        state = state.replace(images=jnp.full_like(state.images, look))
        state = record(state, jnp.asarray(losses[:, look]), jnp.asarray(verdicts[:, look]))
    return state


def test_records_are_those_of_a_loop():
    generator = np.random.default_rng(0)
    losses = generator.normal(size=(200, 6))
    losses[generator.uniform(size=losses.shape) < .15] = np.nan
    verdicts = generator.uniform(size=losses.shape) < .7
    state = recorded(losses, verdicts)
    for row in range(200):
        best, look, acceptable, first, count = replay(losses[row].astype(np.float32), verdicts[row])
        assert state.best_loss[row] == best
        assert state.best_images[row, 0, 0] == look
        assert state.acceptable[row] == acceptable
        assert state.first_fooled[row] == first
        assert state.looks_acceptable[row] == count
        assert state.step[row] == 6


def test_nan_loss_never_blocks_a_finite_one():
    state = recorded([[NAN, 1, 2, NAN]], [[False, False, False, False]])
    assert state.best_loss[0] == 2
    assert state.best_images[0, 0, 0] == 2
    state = recorded([[NAN, NAN]], [[True, True]])
    assert state.best_loss[0] == -np.inf
    assert state.acceptable[0]


def test_done_examples_do_not_change():
    state = recorded([[1, 2]], [[True, True]]).replace(done=jnp.array([True]))
    after = looks.record(state, jnp.array([9.]), jnp.array([False]))
    for name in ('best_loss', 'acceptable', 'first_fooled', 'looks_acceptable', 'step'):
        assert getattr(after, name) == getattr(state, name)
    assert looks.move_to(state, state.images + 1, ()).images == state.images


def test_counts_of_a_whole_attack(setting, found_by):
    s = setting()
    attack = pgd(num_steps=5)
    found = found_by(attack, s, eps=.2)
    # The same attack in Python, whose looks are kept.
    state = attack.init(s.victim, s.keys, s.images, s.labels, None, {'eps': jnp.full(8, .2)})
    step, trail = jax.jit(partial(attack.step, s.victim)), []
    for _ in range(6):
        trail.append(state.images)
        state = step(s.images, s.labels, state)
    outputs = [s.victim.forward(x, None) for x in trail]
    losses = np.stack([s.victim.loss(z, s.labels) for z in outputs], 1)
    verdicts = np.stack([s.victim.acceptable(z, s.labels) for z in outputs], 1)
    assert 0 < verdicts.mean() < 1
    for row in range(8):
        best, look, acceptable, first, count = replay(losses[row], verdicts[row])
        assert found.loss[row] == pytest.approx(best, rel=1e-5)
        np.testing.assert_allclose(found.images[row], trail[look][row], atol=1e-6)
        assert found.acceptable[row] == acceptable
        assert found.first_fooled[row] == first
        assert state.looks_acceptable[row] == count


def test_gradients_that_are_not_finite_fool_nobody(setting, found_by):
    s = setting()
    forward = s.victim.forward
    # sqrt at 0 has the value 0 and the gradient inf * 0 = NaN.
    root = lambda x: jnp.sqrt(0 * x.reshape(len(x), -1)).sum(1, keepdims=True)  # noqa: E731
    s.victim = s.victim._replace(forward=lambda x, k: forward(x, k) + root(x))
    s.labels = forward(s.images, None).argmax(-1)
    for attack in (pgd(num_steps=3, start='clean'), smia(num_steps=3), pgd(num_steps=3, norm='l2', start='clean')):
        found = found_by(attack, s, eps=.5)
        assert found.acceptable.all()
        np.testing.assert_array_equal(found.images, s.images)


def test_model_that_answers_nan_is_fooled(setting, found_by):
    s = setting()
    forward = s.victim.forward
    s.victim = s.victim._replace(forward=lambda x, k: jnp.where(x.reshape(len(x), -1).max(1, keepdims=True) > .99,
                                                                jnp.nan, forward(x, k)))
    found = found_by(pgd(num_steps=3), s, eps=.5)
    assert not found.acceptable.any()
    assert np.isfinite(found.images).all()


def test_all_ways_to_run_agree(setting, same_bits):
    s = setting()
    for attack in (restarts(pgd(num_steps=2), 2), stop_when_fooled(smia(num_steps=3))):
        args = (attack, s.victim, s.keys, s.images, s.labels)
        plain = jax.jit(partial(run, attack, s.victim, eps=.1))(s.keys, s.images, s.labels)
        for other in (run(*args, eps=.1), run(*args, eps=.1, unroll=True), run_on_host(*args, eps=.1)):
            np.testing.assert_allclose(other.images, plain.images, atol=1e-6)
            same_bits(other.first_fooled, plain.first_fooled)


def test_new_eps_costs_no_trace(setting):
    s = setting()
    traces = []

    def forward(images, keys):
        traces.append(1)
        return s.victim.forward(images, keys)

    victim = Victim(forward, s.victim.loss, s.victim.acceptable)
    go = jax.jit(partial(run, pgd(num_steps=3), victim))
    first = go(s.keys, s.images, s.labels, eps=.1)
    count = len(traces)
    second = go(s.keys, s.images, s.labels, eps=.2)
    assert len(traces) == count
    assert np.any(first.images != second.images)
    attack = pgd(num_steps=3)
    run_on_host(attack, victim, s.keys, s.images, s.labels, eps=.1)
    count = len(traces)
    run_on_host(attack, victim, s.keys[::-1], s.images[::-1], s.labels[::-1], eps=.3)
    assert len(traces) == count


def test_the_last_iterate_is_a_constant_to_gradients(setting):
    s = setting(batch=2)

    def loss(scale):
        victim = s.victim._replace(forward=lambda x, k: scale * s.victim.forward(x, k))
        crafted = perturb(pgd(num_steps=2), victim, s.keys, s.images, s.labels, eps=.1)
        return crafted.sum()

    assert jax.grad(loss)(1.0) == 0
