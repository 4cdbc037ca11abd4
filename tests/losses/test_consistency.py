"""Stabilization terms: values, positions, trees."""
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from medrobust_jax.losses.consistency import STABILIZATIONS, hard, kl, squared_error

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize('positions', [(), (3,), (2, 5)])
def test_values_by_numpy(positions):
    a, b = GENERATOR.normal(size=(2, 4, *positions, 3)).astype(np.float32)
    p, log_q = special.softmax(a, axis=-1), special.log_softmax(b, axis=-1)
    over = tuple(range(1, b.ndim - 1))
    np.testing.assert_allclose(kl(jnp.asarray(a), jnp.asarray(b)),
                               (p * (np.log(p) - log_q)).sum(-1).mean(over), rtol=1e-4)
    chosen = np.take_along_axis(log_q, a.argmax(-1)[..., None], -1)[..., 0]
    np.testing.assert_allclose(hard(jnp.asarray(a), jnp.asarray(b)), -chosen.mean(over), rtol=1e-5)
    np.testing.assert_allclose(squared_error(jnp.asarray(a), jnp.asarray(b)),
                               ((a - b)**2).reshape(4, -1).mean(1), rtol=1e-5)


@pytest.mark.parametrize('name', ['kl', 'squared_error'])
def test_agreement_is_zero(name):
    z = jnp.asarray(GENERATOR.normal(size=(5, 2)))
    np.testing.assert_allclose(STABILIZATIONS[name](z, z), 0, atol=1e-6)


def test_trees():
    a, b = jnp.asarray(GENERATOR.normal(size=(2, 4, 3)))
    c, d = jnp.asarray(GENERATOR.normal(size=(2, 4, 6, 3)))
    for distance in (kl, hard):
        np.testing.assert_allclose(distance((a, c), (b, d)), (distance(a, b) + distance(c, d)) / 2, rtol=1e-6)
    # All entries weigh the same: 3 of a and 18 of c.
    np.testing.assert_allclose(squared_error((a, c), (b, d)),
                               (squared_error(a, b) * 3 + squared_error(c, d) * 18) / 21, rtol=1e-6)
    assert squared_error({'score': jnp.ones(4)}, {'score': jnp.zeros(4)}).shape == (4,)
