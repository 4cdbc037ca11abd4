"""One mesh with one axis, 'data': parameters are replicated, batches are split.

One device is the trivial case of the same program. Axis types are given explicitly as Auto,
because `jax.make_mesh` defaults to Explicit axes, under which gathers along the batch (DLR, a
permutation, a table of margins) raise.

Contents: `data_mesh`, `replicated`, `batch_sharding`, `put_batch`.

Example:

    mesh = data_mesh()                                    # all devices of all processes
    state = jax.device_put(state, replicated(mesh))
    batch = put_batch(mesh, next(batches))                # this process's rows in, global arrays out
    state, metrics = train_step(state, batch)
"""
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = 'data'


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices`, by default all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds in full: parameters, tables, scalars."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Lays a batch over the mesh, rows split between the devices.

    Args:
      mesh: from `data_mesh`.
      batch: arrays with leading axis B, the rows of this process alone; every process gives as
        many, in the order of its devices.

    Returns:
      Global arrays with leading axis B * number of processes.

    Raises:
      ValueError: where this process's rows cannot be split evenly between its devices.
    """
    rows = {name: len(value) for name, value in batch.items()}
    devices = len(mesh.local_devices)
    if len(set(rows.values())) > 1 or any(count % devices for count in rows.values()):
        raise ValueError(f'a batch with rows {rows} cannot be split between the {devices} devices of this '
                         f'process; make batch_size a multiple of {mesh.size}')
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
            for name, value in batch.items()}
