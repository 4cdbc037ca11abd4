"""Blocks of a fixed width: every row's bits depend on the row alone."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from medrobust_jax.core.blocks import in_blocks, on_each_device

GENERATOR = np.random.default_rng(0)
W1, W2 = (GENERATOR.normal(size=shape).astype(np.float32) for shape in ((37, 53), (53, 11)))
ROWS = GENERATOR.normal(size=(40, 37)).astype(np.float32)


def rows_of(x):
    return jax.nn.softmax(jnp.tanh(x @ W1) @ W2)


@pytest.mark.parametrize('width', [1, 3, 8])
def test_bits_do_not_depend_on_batch_size_order_or_neighbors(width):
    blocked = jax.jit(in_blocks(rows_of, width=width))
    whole = np.asarray(blocked(ROWS))
    np.testing.assert_allclose(whole, rows_of(ROWS), rtol=1e-4)
    for size in (1, 7, 8, 19):
        np.testing.assert_array_equal(blocked(ROWS[:size]), whole[:size])
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_array_equal(blocked(ROWS[order]), whole[order])


def test_plain_batches_do_depend_on_it():
    plain = jax.jit(rows_of)
    whole = np.asarray(plain(ROWS))
    if not any(np.any(np.asarray(plain(ROWS[:size])) != whole[:size]) for size in (1, 2, 3, 7, 19)):
        pytest.skip('this jaxlib computes this network alike at every width: here blocks would not be needed')


def test_trees_keys_and_whole_multiples():
    keys = jax.random.split(jax.random.key(0), 16)
    fn = lambda keys, tree: {'draw': jax.vmap(jax.random.uniform)(keys), 'sum': tree['a'] + tree['b']}  # noqa: E731
    tree = {'a': jnp.arange(16), 'b': jnp.arange(16.)}
    got = in_blocks(fn, width=8)(keys, tree)
    np.testing.assert_array_equal(got['draw'], jax.vmap(jax.random.uniform)(keys))
    np.testing.assert_array_equal(got['sum'], 2 * np.arange(16.))


def test_refusals():
    with pytest.raises(ValueError, match='width 0 must be at least 1'):
        in_blocks(rows_of, width=0)
    with pytest.raises(ValueError, match=r'leading axes \[5, 4\] must be equal'):
        in_blocks(lambda a, b: a + b, width=2)(jnp.arange(5), jnp.arange(4))
    with pytest.raises(ValueError, match='at least 1'):
        in_blocks(lambda a: a, width=2)(jnp.zeros((0, 3)))


def test_on_each_device_equals_one_device_bit_for_bit():
    mesh = Mesh(np.array(jax.devices()), ('data',))
    assert mesh.size == 8
    blocked = in_blocks(rows_of, width=2)
    expected = jax.jit(blocked)(ROWS)
    np.testing.assert_array_equal(jax.jit(on_each_device(blocked, mesh))(ROWS), expected)
    shared = in_blocks(lambda x: x, width=2)
    scaled = on_each_device(lambda scale, x: scale[0] * shared(x), mesh, num_shared=1)
    np.testing.assert_array_equal(scaled(jnp.array([3.]), ROWS), np.float32(3) * ROWS)
