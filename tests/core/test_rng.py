"""Randomness per example: the draws know nothing of the batch."""
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from medrobust_jax.core import rng


def same(a, b):
    return np.array_equal(jax.random.key_data(a), jax.random.key_data(b))


def test_draws_depend_on_the_index_alone():
    index = jnp.array([5, 0, 17, 3])
    keys = rng.example_keys(7, index)
    noise = rng.uniform(keys, (3, 2))
    for row in range(4):
        alone = rng.example_keys(7, index[row:row + 1])
        np.testing.assert_array_equal(rng.uniform(alone, (3, 2))[0], noise[row])
    order = np.array([2, 3, 0, 1])
    np.testing.assert_array_equal(rng.uniform(rng.example_keys(7, index[order]), (3, 2)), noise[order])
    np.testing.assert_array_equal(jax.jit(lambda i: rng.uniform(rng.example_keys(7, i), (3, 2)))(index), noise)


def test_seeds_folds_and_indices_give_different_keys():
    index = jnp.arange(50)
    variants = [rng.example_keys(0, index), rng.example_keys(1, index), rng.example_keys(0, index, 1),
                rng.example_keys(0, index, 1, 2), rng.example_keys(0, index, 2, 1)]
    data = np.concatenate([np.asarray(jax.random.key_data(keys)) for keys in variants])
    assert len(np.unique(data, axis=0)) == len(data)


def test_fold_takes_scalars_and_rows():
    keys = rng.example_keys(0, jnp.arange(4))
    folded = rng.fold(keys, jnp.array([3, 3, 5, 5]))
    assert same(folded[:2], rng.fold(keys, 3)[:2])
    assert same(folded[2:], rng.fold(keys, 5)[2:])
    assert not same(rng.fold(keys, 3), rng.fold(keys, 5))


def test_split_each():
    keys = rng.example_keys(0, jnp.arange(4))
    first, second, third = rng.split_each(keys, 3)
    assert first.shape == second.shape == third.shape == (4,)
    assert same(second[2:3], jax.random.split(keys[2], 3)[1:2])


def test_distributions_and_types():
    keys = rng.example_keys(3, jnp.arange(500))
    uniform, normal = rng.uniform(keys, (20,), -2.0, 5.0), rng.normal(keys, (20,))
    assert uniform.dtype == normal.dtype == jnp.float32
    assert stats.kstest(np.asarray(uniform, np.float64).ravel(), 'uniform', args=(-2, 7)).pvalue > 1e-3
    assert stats.kstest(np.asarray(normal, np.float64).ravel(), 'norm').pvalue > 1e-3
    assert rng.normal(keys, (), jnp.bfloat16).dtype == jnp.bfloat16
    assert rng.uniform(keys, ()).shape == (500,)
