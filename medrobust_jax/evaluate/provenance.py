"""Where a number comes from.

Contents: `provenance`, `program`.
"""
import datetime
import math
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import medrobust_jax

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')


def provenance(*, config_fingerprint: str = '', checkpoint_fingerprint: str = '',
               dataset_fingerprint: str = '', block_width: int | None = None,
               wall_seconds: float = math.nan) -> dict[str, Any]:
    """Where a number comes from, as plain values for `Row.provenance`.

    Args:
      config_fingerprint: of the run's config.
      checkpoint_fingerprint: of the parameters that were evaluated.
      dataset_fingerprint: of the examples.
      block_width: images per fixed block in which the network was computed.
      wall_seconds: how long the measurement took.

    Returns:
      These, and 'versions' of what computes, 'commit' of the source with '-dirty' if it was
      edited since ('' outside a checkout), 'device' (kind and number) and 'time' (UTC).
    """
    now = datetime.datetime.now(datetime.UTC)
    return {'config_fingerprint': config_fingerprint,
            'checkpoint_fingerprint': checkpoint_fingerprint,
            'dataset_fingerprint': dataset_fingerprint, **program(), 'block_width': block_width,
            'wall_seconds': wall_seconds, 'time': now.isoformat(timespec='seconds')}


def program() -> dict[str, Any]:
    """What computes: 'versions', 'commit' of the source with '-dirty' if it was edited since, and 'device'."""
    import jax  # here alone: reading a report must not start a backend

    devices = jax.devices()
    versions = {name: metadata.version(name) for name in _PACKAGES}
    versions |= {'medrobust_jax': medrobust_jax.__version__, 'python': platform.python_version()}
    return {'versions': versions, 'commit': _commit(), 'device': f'{devices[0].device_kind} x {len(devices)}'}


def _commit() -> str:
    """The commit of this package's source; '' where it is not part of a checkout."""
    folder = Path(medrobust_jax.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(['git', '-C', str(folder), *arguments], check=True, text=True,
                              capture_output=True, timeout=10).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout: is this very file tracked?
        git('ls-files', '--error-unmatch', '__init__.py')
        return git('rev-parse', 'HEAD') + ('-dirty' if git('status', '--porcelain', '.') else '')
    except (OSError, subprocess.SubprocessError):
        return ''
