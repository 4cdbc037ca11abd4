"""A search over a grid that survives being killed: everything it knows, in one file, replaced as a whole.

Contents: `Snapshots`.

Example:

    snapshots = Snapshots(workdir / 'unfinished' / 'pgd100.npz', about={'checkpoint': '1f3a...'}, every_seconds=60)
    arrays = snapshots.load()                       # None where there is nothing to continue
    snapshots.save_if_due(lambda: {...})
"""
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

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
        self._every, self._last = every_seconds, time.monotonic()

    def load(self) -> dict[str, np.ndarray] | None:
        """The state saved last, or None: nothing was saved, or it is damaged or of another search."""
        if not self._path.exists():
            return None
        try:
            with open(self._path, 'rb') as handle, np.load(handle, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = str(arrays.pop('about'))
        except (zipfile.BadZipFile, EOFError, KeyError, ValueError, OSError) as error:
            logging.warning('%s cannot be continued from (%s): this attack starts again', self._path, error)
            return None
        if about != self._about:
            logging.warning('%s is of another attack, model or grid: this attack starts again', self._path)
            return None
        return arrays

    def save_if_due(self, state: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Saves `state()` if the last save is long enough ago."""
        if time.monotonic() - self._last >= self._every:
            self.save(state())

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Saves now, whole or not at all."""
        save_arrays(self._path, {**arrays, 'about': np.asarray(self._about)})
        self._last = time.monotonic()
