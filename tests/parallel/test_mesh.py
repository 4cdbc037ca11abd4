"""The mesh and the hosts, in one process with eight emulated devices."""
import jax
import numpy as np
import pytest

from medrobust_jax.parallel import hosts
from medrobust_jax.parallel.mesh import batch_sharding, data_mesh, put_batch, replicated


def test_rows_are_split_and_parameters_repeated():
    mesh = data_mesh()
    assert mesh.size == len(jax.devices()) == 8
    assert mesh.axis_names == ('data',)
    assert {kind.name for kind in mesh.axis_types} == {'Auto'}
    batch = put_batch(mesh, {'image': np.arange(32.0).reshape(16, 2), 'index': np.arange(16)})
    assert batch['image'].sharding == batch_sharding(mesh)
    np.testing.assert_array_equal(batch['image'].addressable_shards[3].data, [[12, 13], [14, 15]])
    whole = jax.device_put(np.ones(3), replicated(mesh))
    assert whole.is_fully_replicated
    assert len(whole.addressable_shards) == 8


def test_gathers_along_the_batch_work_under_auto_axes():
    mesh = data_mesh()
    rows = put_batch(mesh, {'x': np.arange(16.0)})['x']
    flipped = jax.jit(lambda x: x[::-1][np.arange(16)])(rows)
    np.testing.assert_array_equal(flipped, np.arange(16.0)[::-1])


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match='make batch_size a multiple of 8'):
        put_batch(data_mesh(), {'image': np.zeros((12, 2))})
    with pytest.raises(ValueError, match='cannot be split'):
        put_batch(data_mesh(jax.devices()[:1]), {'image': np.zeros(3), 'label': np.zeros(2)})


def test_one_process_is_primary_and_waits_for_nobody():
    hosts.initialize()
    hosts.barrier('nobody')
    assert hosts.is_primary()
    assert hosts.any_process(True)
    assert not hosts.any_process(False)


@pytest.mark.parametrize('given', [dict(coordinator_address='localhost:1'), dict(num_processes=2),
                                   dict(coordinator_address='localhost:1', num_processes=2, process_id=2)])
def test_half_a_cluster_is_refused(given):
    with pytest.raises(ValueError, match=r'go together|outside'):
        hosts.initialize(**given)
