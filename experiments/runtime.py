"""What every program does first: flags for the compiler, the canary, and the compilation cache."""
import os
from pathlib import Path

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
    if cache_dir is None:
        cache_dir = os.environ.get('MEDROBUST_CACHE', str(Path.home() / '.cache' / 'medrobust_jax'))
    if cache_dir:
        jax.config.update('jax_compilation_cache_dir', cache_dir)
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    numerics.canary()
    logging.info('JAX %s on %s', jax.__version__, jax.devices())
