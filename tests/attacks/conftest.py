"""Small victims and batches for the attacks' tests."""
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import run as run_module
from medrobust_jax.core import rng
from medrobust_jax.core.types import Victim
from medrobust_jax.losses.classification import cross_entropy, prediction_is_right


def _setting(shape=(4, 4, 1), *, batch=8, classes=3, hidden=8, seed=0, dtype=np.float32, low=0.0, high=1.0):
    """A victim (a linear model where hidden is 0, else a small smooth network) and a batch for it."""
    generator = np.random.default_rng(seed)
    size = int(np.prod(shape))
    w1 = generator.normal(size=(size, hidden or classes)).astype(dtype) / np.sqrt(size) * 3
    w2 = generator.normal(size=(hidden, classes)).astype(dtype) if hidden else None

    def forward(images, keys):
        flat = images.reshape(len(images), -1) - .5
        return flat @ w1 if w2 is None else jnp.tanh(flat @ w1) @ w2

    images = jnp.asarray(generator.uniform(low, high, size=(batch, *shape)).astype(dtype))
    logits = np.asarray(forward(images, None))
    labels = np.where(generator.uniform(size=batch) < .9, logits.argmax(1), generator.integers(0, classes, batch))
    return SimpleNamespace(victim=Victim(forward, cross_entropy, prediction_is_right), images=images, w1=w1, w2=w2,
                           labels=jnp.asarray(labels), keys=rng.example_keys(seed, jnp.arange(batch)))


@pytest.fixture
def setting():
    """`setting(shape, batch=, classes=, hidden=, ...)` -> victim, images, labels, keys, w1, w2."""
    return _setting


def _attack(attack, s, *, eps):
    def both(keys, images, labels):
        state = run_module.advance(attack, s.victim, keys, images, labels, eps=eps)
        return run_module.last_look(attack, s.victim, labels, state), state.images
    return jax.jit(both)(s.keys, s.images, s.labels)


@pytest.fixture
def found_by():
    """`found_by(attack, setting, eps=)` -> AttackResult, compiled as one program."""
    return lambda attack, s, *, eps: _attack(attack, s, eps=eps)[0]


@pytest.fixture
def last_of():
    """`last_of(attack, setting, eps=)` -> the last iterate, compiled as one program."""
    return lambda attack, s, *, eps: _attack(attack, s, eps=eps)[1]


@pytest.fixture
def found_and_last():
    """`found_and_last(attack, setting, eps=)` -> AttackResult and the last iterate."""
    return _attack


def _norms(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, ord={'linf': np.inf, 'l2': 2, 'l1': 1}[norm], axis=1)


@pytest.fixture
def norms():
    """`norms(delta, norm)` -> `[B]`, by NumPy in float64."""
    return _norms


@pytest.fixture
def as_alone(same_bits):
    """Asserts that examples at different iterations, and permuted ones, are what they are alone.

    `as_alone(attack, setting of 6, head_start=, steps=)`: every other example is `head_start` steps ahead when
    `steps` more are made.
    """
    def check(attack, s, *, head_start, steps):
        step = jax.jit(partial(attack.step, s.victim))
        fresh = run_module.begin(attack, s.victim, s.keys, s.images, s.labels, eps=.2)
        history = [fresh]
        for _ in range(head_start + steps):
            history.append(step(s.images, s.labels, history[-1]))
        late = jnp.arange(6) % 2 == 1

        def mixed(a, b):
            return jax.tree.map(lambda x, y: jnp.where(late.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b)

        state = mixed(history[head_start], fresh)
        for _ in range(steps):
            state = step(s.images, s.labels, state)
        expected = mixed(history[head_start + steps], history[steps])
        same_bits(*(jax.tree.leaves(t.replace(key=())) for t in (state, expected)))
        order = np.array([3, 1, 5, 0, 2, 4])
        permuted = run_module.begin(attack, s.victim, s.keys[order], s.images[order], s.labels[order], eps=.2)
        for _ in range(steps):
            permuted = step(s.images[order], s.labels[order], permuted)
        same_bits(permuted.images, history[steps].images[order])

    return check


@pytest.fixture
def same_bits():
    """Asserts that two trees are equal in every bit."""
    def check(a, b):
        for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
    return check
