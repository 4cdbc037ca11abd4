"""Several processes, one run: start together, write once, stop together.

Every function is a no-op, or the obvious answer, in a run of one process.

Contents: `initialize`, `is_primary`, `barrier`, `any_process`.

Example, the same command on every host:

    hosts.initialize('10.0.0.1:8476', num_processes=4, process_id=0)
    if hosts.is_primary():
        (workdir / 'config.json').write_text(text)
    hosts.barrier('config written')
"""
import jax
import numpy as np
from jax.experimental import multihost_utils


def initialize(coordinator_address: str | None = None, num_processes: int | None = None,
               process_id: int | None = None, *, automatic: bool = False) -> None:
    """Joins the processes of a run; call it before anything touches a device.

    With all left out a run of one process is meant, and nothing happens. On CPU the processes talk
    through gloo.

    Args:
      coordinator_address: `host:port` of process 0, reachable from all.
      num_processes: how many processes there are.
      process_id: which one this is, from 0.
      automatic: ask the environment for the three (TPU pods, Slurm).

    Raises:
      ValueError: where only some of the three are given, or `process_id` is out of range.
    """
    given = (coordinator_address, num_processes, process_id)
    if automatic:
        if any(value is not None for value in given):
            raise ValueError(f'automatic leaves no choice of address, number and id of processes, got {given}')
        jax.distributed.initialize()
        return
    if all(value is None for value in given):
        return
    if coordinator_address is None or num_processes is None or process_id is None:
        raise ValueError(f'coordinator_address, num_processes and process_id go together, got {given}')
    if not 0 <= process_id < num_processes:
        raise ValueError(f'process_id {process_id} is outside 0..{num_processes - 1}')
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(coordinator_address, num_processes, process_id)


def is_primary() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether `flag` holds on any process; all must call it at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
