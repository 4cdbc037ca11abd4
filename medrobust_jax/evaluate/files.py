"""Files that are written whole or not at all, and errors that name them.

Contents: `naming`, `replacing`, `save_arrays`, `plain`.

Example:

    with naming(path, 'write results'), replacing(path) as partial:
        partial.write_bytes(content)
"""
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def naming(path: str | Path, action: str) -> Iterator[None]:
    """Says what could not be done with which file when the disk refuses."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f'cannot {action}: {reason}', str(path)) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file to write to that takes the place of `path` once it is whole and on disk."""
    target = Path(path)
    partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
    try:
        yield partial
        with open(partial, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = True) -> None:
    """Writes named arrays as an npz, whole or not at all.

    Args:
      path: the file; its folder is made where missing.
      arrays: of numbers or strings.
      compressed: smaller by a third or so, and tens of times slower.

    Raises:
      OSError: the disk is full or read-only; names the path.
    """
    with naming(path, f'write {Path(path).name}'):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, open(partial, 'wb') as file:
            (np.savez_compressed if compressed else np.savez)(file, allow_pickle=False, **arrays)


def plain(value: Any) -> Any:
    """A value as JSON holds it: NaN is None, and infinities, which JSON lacks, are strings.

    Raises:
      ValueError: for what is not made of numbers, strings, lists and mappings.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f'a record holds plain values only, got {type(value).__name__}: {value!r}')
