"""Test set-up: the compiler flag, eight emulated devices, and the marker for real images."""
import os
from pathlib import Path

import pytest

from medrobust_jax.core import numerics

numerics.configure_xla()

import jax  # noqa: E402 - the flag above must be set before JAX starts

jax.config.update('jax_num_cpu_devices', 8)
CACHE = os.environ.get('MEDROBUST_CACHE', str(Path.home() / '.cache' / 'medrobust_jax'))
jax.config.update('jax_compilation_cache_dir', CACHE)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests on real images, with the reason, where there are none."""
    if os.environ.get('MEDROBUST_DATA') and Path(os.environ['MEDROBUST_DATA']).is_dir():
        return
    reason = 'real images absent: set MEDROBUST_DATA to the folder that holds medmnist/, busi/, ...'
    for item in items:
        if 'realdata' in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def data_dir() -> Path:
    """The folder of real images."""
    return Path(os.environ['MEDROBUST_DATA'])
