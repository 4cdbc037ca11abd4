"""The host loop that feeds compiled programs."""
import jax
import numpy as np
import pytest

from medrobust_jax.core.blocks import in_blocks
from medrobust_jax.evaluate.programs import Layout, in_chunks, make_layout
from medrobust_jax.parallel.mesh import data_mesh


def recording(sizes):
    def program(factor, values, more):
        sizes.append(len(values))
        return {'sum': factor * (values + more['a']), 'twice': 2 * values}
    return program


@pytest.mark.parametrize('rows', [None, np.array([6]), np.array([5, 0, 3, 3, 6, 1])])
@pytest.mark.parametrize('chunk', [2, 4, 8])
def test_chunks_have_one_shape_and_results_the_order_asked_for(rows, chunk):
    sizes, done = [], []
    run = in_chunks(recording(sizes), Layout(data_mesh(), 1, chunk), progress=done.append)
    values, more = np.arange(7.0), {'a': 10 * np.arange(7.0)}
    found = run(3.0, values, more, rows=rows)
    expected = values if rows is None else values[rows]
    np.testing.assert_array_equal(found['sum'], 33 * expected)
    np.testing.assert_array_equal(found['twice'], 2 * expected)
    assert set(sizes) == {chunk}
    assert sum(done) == len(expected)


def test_typed_keys_travel_through_chunks():
    keys = jax.random.split(jax.random.key(0), 5)
    run = in_chunks(lambda _, keys: jax.random.key_data(keys), Layout(data_mesh(), 1, 4))
    rows = np.array([4, 2])
    np.testing.assert_array_equal(run(None, keys, rows=rows), jax.random.key_data(keys)[rows])


@pytest.mark.parametrize(('devices', 'width', 'asked', 'chunk'), [(1, 3, 6, 6), (1, 4, 1, 8), (8, 4, 1, 64),
                                                                  (8, 4, 65, 128), (2, 16, 64, 64)])
def test_a_chunk_is_rounded_up_to_two_blocks_per_device(devices, width, asked, chunk):
    assert make_layout(data_mesh(jax.devices()[:devices]), width=width, chunk=asked).chunk == chunk


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match='block width 0'):
        in_blocks(lambda x: x, width=0)
