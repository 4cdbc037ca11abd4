"""A search over a grid that survives being killed: everything it knows, in one file, replaced as a whole.

Contents: `Snapshots`, `settings_of`, `digest_of`.

Example:

    snapshots = Snapshots(workdir / 'unfinished' / 'pgd100.npz', about={'checkpoint': '1f3a...'}, every_seconds=60)
    arrays = snapshots.load()                       # None where there is nothing to continue
    snapshots.save_if_due(lambda: {...})
"""
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from medrobust_jax.data.files import read_npz
from medrobust_jax.evaluate.files import save_arrays


class Snapshots:
    """Saves and loads one search's state.

    Args:
      path: the file.
      about: plain values that decide the search's outcome (attack, grid, seed, fingerprints); a file
        saved with others is not continued.
      every_seconds: between two saves; what a kill loses at most.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any], *, every_seconds: float = 60.0):
        self._path, self._about = Path(path), json.dumps(about, sort_keys=True, default=str)
        self.every_seconds, self._last, self._cost = every_seconds, time.monotonic(), 0.0

    def load(self) -> dict[str, np.ndarray] | None:
        """The state saved last, or None: nothing was saved, or it is damaged or of another search."""
        if not self._path.exists():
            return None
        try:
            arrays = read_npz(self._path)
            about = str(arrays.pop('about'))
        except (KeyError, ValueError) as error:
            logging.warning('%s cannot be continued from (%s): this attack starts again', self._path, error)
            return None
        if about != self._about:
            logging.warning('%s is of another attack, model or grid: this attack starts again', self._path)
            return None
        return arrays

    def of(self, **more: Any) -> 'Snapshots':
        """The same file for a search that is also decided by `more`."""
        return Snapshots(self._path, {'outer': self._about, **more}, every_seconds=self.every_seconds)

    def save_if_due(self, state: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Saves `state()` if the last save is long enough ago: `every_seconds`, and 20 times what a save takes."""
        if time.monotonic() - self._last < max(self.every_seconds, 20 * self._cost):
            return
        started = time.monotonic()
        self.save(state())
        self._last = time.monotonic()
        self._cost = self._last - started

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Saves now, whole or not at all. A disk that refuses costs the snapshot, not the search."""
        try:
            save_arrays(self._path, {**arrays, 'about': np.asarray(self._about)}, compressed=False)
        except OSError as error:
            logging.warning('no snapshot was saved, so a kill would lose more: %s', error)


def digest_of(*arrays: Any) -> str:
    """SHA-256 over dtypes, shapes and contents, as hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        keys = isinstance(array, jax.Array) and jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key)
        plain = np.asarray(jax.random.key_data(array) if keys else array)
        digest.update(f'{plain.dtype}{plain.shape}'.encode())
        digest.update(np.ascontiguousarray(plain).data)
    return digest.hexdigest()


def settings_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The plain values that a function closes over, by name, through other functions; arrays as hashes.

    Tells two attacks of one kind apart that were made with other options.
    """
    seen: set[int] = set()

    def of(value: Any) -> Any:
        if isinstance(value, jax.Array | np.ndarray):
            return digest_of(value)
        if isinstance(value, Mapping):
            return {str(key): of(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [of(item) for item in value]
        if isinstance(value, partial):
            return [of(value.func), of(value.args), of(value.keywords)]
        if inspect.isfunction(value):
            if id(value) in seen:
                return value.__qualname__
            seen.add(id(value))
            cells = inspect.getclosurevars(value).nonlocals
            return {'function': f'{value.__module__}.{value.__qualname__}',
                    **{name: of(item) for name, item in sorted(cells.items())}}
        return value if isinstance(value, bool | int | float | str | None) else type(value).__name__

    return of(function)
