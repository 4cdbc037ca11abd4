"""What every program does first: flags for the compiler, the canary, and the compilation cache."""
import os
from logging import INFO, WARNING, getLogger
from pathlib import Path
from typing import Any

import jax
from absl import logging

from medrobust_jax.core import numerics


def start(cache_dir: str | None = None) -> None:
    """Prepares JAX; must come before anything touches a device.

    Args:
      cache_dir: where compiled programs are kept between runs; None takes MEDROBUST_CACHE, else
        ~/.cache/medrobust_jax; an empty string keeps none.
    """
    numerics.configure_xla()
    logging.get_absl_logger().addFilter(_is_ours_or_serious)
    getLogger('jax').setLevel(WARNING)  # it lists the accelerators that are absent
    if cache_dir is None:
        cache_dir = os.environ.get('MEDROBUST_CACHE', str(Path.home() / '.cache' / 'medrobust_jax'))
    if cache_dir:
        jax.config.update('jax_compilation_cache_dir', cache_dir)
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    numerics.canary()
    logging.info('JAX %s on %s', jax.__version__, jax.devices())


def _is_ours_or_serious(record: Any) -> bool:
    """Drops the many informational lines of the checkpoint library, which share absl's logger."""
    return record.levelno > INFO or 'orbax' not in record.pathname
