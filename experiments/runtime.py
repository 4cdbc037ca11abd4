"""What every program does first: flags for the compiler, the canary, and the compilation cache."""
import os
import sys
from logging import WARNING, getLogger
from pathlib import Path
from typing import Any

import jax
from absl import logging

from medrobust_jax.core import numerics

MOST_CPU_DEVICES = 8


def start(cache_dir: str | None = None, *, device_per_core: bool = False) -> None:
    """Prepares JAX; must come before anything touches a device.

    Args:
      cache_dir: where compiled programs are kept between runs; None takes MEDROBUST_CACHE, else
        ~/.cache/medrobust_jax; an empty string keeps none.
      device_per_core: make a CPU as many devices as it has cores, rounded down to 1, 2, 4 or 8, unless the
        environment says how many. An evaluation's slots then keep all cores busy, which the small blocks of one
        device do not.
    """
    numerics.configure_xla()
    told = 'JAX_NUM_CPU_DEVICES' in os.environ or 'device_count' in os.environ.get('XLA_FLAGS', '')
    if device_per_core and not told:
        jax.config.update('jax_num_cpu_devices', min(1 << num_cores().bit_length() - 1, MOST_CPU_DEVICES))
    logging.get_absl_logger().addFilter(_is_ours_or_a_warning)
    sys.unraisablehook = _quiet_about_closed_loops
    getLogger('jax').setLevel(WARNING)  # it lists the accelerators that are absent
    if cache_dir is None:
        cache_dir = os.environ.get('MEDROBUST_CACHE', str(Path.home() / '.cache' / 'medrobust_jax'))
    if cache_dir:
        jax.config.update('jax_compilation_cache_dir', cache_dir)
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    numerics.canary()
    logging.info('JAX %s on %s', jax.__version__, jax.devices())


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _is_ours_or_a_warning(record: Any) -> bool:
    """Drops what the checkpoint library logs, but for warnings: its errors are raised as well."""
    return 'orbax' not in record.pathname or record.levelno == WARNING


def _quiet_about_closed_loops(unraisable: Any) -> None:
    """Keeps quiet what the checkpoint library's other writes say after one has failed, as on a full disk."""
    if 'Event loop is closed' not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
