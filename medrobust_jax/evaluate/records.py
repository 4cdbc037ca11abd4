"""What an evaluation leaves behind: `results.jsonl`, and verdicts per example.

Contents: `Row`, `rows_of`, `append_row`, `read_rows`, `merge_rows`, `update_rows`, `provenance`,
`Verdicts`, `save_verdicts`, `load_verdicts`, `save_arrays`.

A run may be killed at any moment: a row is written in one piece or, if the machine dies halfway,
recognized as torn and dropped; every other file is written beside its place and moved there.

Example:

    evidence = provenance(checkpoint_fingerprint=fingerprint, block_width=8, wall_seconds=41.3)
    for row in rows_of(estimates, dataset='pneumoniamnist', ..., provenance=evidence):
        append_row(workdir / 'results.jsonl', row)
    rows = read_rows(workdir / 'results.jsonl')
"""
import dataclasses
import datetime
import json
import math
import os
import platform
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

import medrobust_jax
from medrobust_jax.metrics.intervals import Estimate

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of an evaluation with its evidence: a line of `results.jsonl`.

    Attributes:
      dataset: its name.
      split: 'train', 'validation' or 'test'.
      model: the architecture's name.
      defense: the training objective's name.
      seed: of the training run.
      attack: the attack's name, which stands for its settings; 'clean' for none.
      norm: of the attack's ball; '' for clean images.
      eps: the ball's radius in units of [0, 1]; 0 for clean images.
      metric: what was measured.
      value: the estimate; NaN where undefined.
      low: the lower end of its 95 % interval, or NaN.
      high: the upper end, or NaN.
      n: the number of examples.
      interval: how the interval was made, as in `Estimate.method`.
      attack_options: the attack's settings, plain values.
      forward_passes: per example; NaN where not counted.
      backward_passes: per example; NaN where not counted.
      warnings: what the sanity checks found, one sentence each.
      provenance: see `provenance`.
    """

    dataset: str
    split: str
    model: str
    defense: str
    seed: int
    attack: str
    norm: str
    eps: float
    metric: str
    value: float
    low: float
    high: float
    n: int
    interval: str
    attack_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    forward_passes: float = math.nan
    backward_passes: float = math.nan
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies the measurement: a later row with the same key replaces this one."""
        return (self.dataset, self.split, self.model, self.defense, self.seed,
                self.provenance.get('checkpoint_fingerprint'), self.attack, self.norm, self.eps,
                self.metric)


_NUMBERS = ('eps', 'value', 'low', 'high', 'forward_passes', 'backward_passes')


def rows_of(estimates: Mapping[str, Estimate], **common: Any) -> list[Row]:
    """One row per metric.

    Args:
      estimates: metric name to estimate.
      **common: the other fields of `Row`, equal for all.

    Returns:
      The rows, in the order of `estimates`.
    """
    return [Row(metric=name, value=e.value, low=e.low, high=e.high, n=e.n, interval=e.method, **common)
            for name, e in estimates.items()]


def append_row(path: str | Path, row: Row) -> None:
    """Appends one line in one write and waits until it is on disk.

    A torn line that a killed run left at the end is cut off first, so that it cannot swallow this
    one; if the disk fills up halfway, the half line is taken back.

    Args:
      path: the file; it and its folder are made where missing.
      row: what to append.

    Raises:
      OSError: the disk is full or read-only; names the path.
      ValueError: the row holds something that JSON does not.
    """
    line = _encode(row)
    with _naming(path, 'write results'):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = _mend(handle, path)
            try:
                if os.write(handle, line) < len(line):
                    raise OSError(28, os.strerror(28))  # ENOSPC: a short write to a regular file
            except OSError:
                os.ftruncate(handle, size)
                raise
            os.fsync(handle)
        finally:
            os.close(handle)


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a `results.jsonl`; of rows with equal keys the latest.

    A torn last line is reported through the log and dropped.

    Args:
      path: the file.

    Returns:
      The rows in the order in which their keys first appeared.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line other than a torn last one is no row; names the line.
    """
    with _naming(path, 'read results'):
        content = Path(path).read_bytes()
    *lines, tail = content.split(b'\n')
    rows = [_decode(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if tail and _is_whole(tail):
        rows.append(_decode(tail, path, len(lines) + 1))
    elif tail:
        logging.warning('%s: the last line is torn (a run was killed while writing it); it is dropped: '
                        'run the evaluation again to replace it', path)
    return merge_rows([], rows)


def merge_rows(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """All rows; where two measure the same thing (see `Row.key`) the later one, in the old place.

    Args:
      old: rows measured before.
      new: rows measured since.

    Returns:
      The merged rows.
    """
    merged: dict[tuple[Any, ...], Row] = {}
    for row in [*old, *new]:
        merged[row.key] = row
    return list(merged.values())


def update_rows(path: str | Path, rows: Iterable[Row]) -> list[Row]:
    """Merges rows into a file, replacing it as a whole: it holds the old rows or all of the new.

    Args:
      path: the file; made where missing.
      rows: what was measured since.

    Returns:
      All rows of the file.

    Raises:
      OSError: the disk is full or read-only; names the path, and leaves the file as it was.
      ValueError: the file holds a line that is no row.
    """
    merged = merge_rows(read_rows(path) if Path(path).exists() else [], rows)
    with _naming(path, 'write results'), _replacing(path) as partial:
        partial.write_bytes(b''.join(map(_encode, merged)))
    return merged


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
    import jax  # here alone: reading a report must not start a backend

    devices = jax.devices()
    versions = {name: metadata.version(name) for name in _PACKAGES}
    versions |= {'medrobust_jax': medrobust_jax.__version__, 'python': platform.python_version()}
    now = datetime.datetime.now(datetime.UTC)
    return {'config_fingerprint': config_fingerprint,
            'checkpoint_fingerprint': checkpoint_fingerprint,
            'dataset_fingerprint': dataset_fingerprint, 'versions': versions, 'commit': _commit(),
            'device': f'{devices[0].device_kind} x {len(devices)}', 'block_width': block_width,
            'wall_seconds': wall_seconds, 'time': now.isoformat(timespec='seconds')}


class Verdicts(NamedTuple):
    """What an attack did to each example, over a grid of eps.

    Attributes:
      index: [N] int, rows of the data set.
      label: [N] int, true classes or grades.
      eps: [E] float, in units of [0, 1].
      acceptable: [E, N] bool, whether the model withstood.
      prediction: [E, N] int, the class predicted for the strongest image found.
      loss: [E, N] float, the loss there.
      first_fooled: [E, N] int, the first look that fooled the model, -1 for none.
      groups: [N] patient ids (integers or strings), or None.
      about: plain values that say what was attacked and how (attack, norm, fingerprints, ...).
    """

    index: np.ndarray
    label: np.ndarray
    eps: np.ndarray
    acceptable: np.ndarray
    prediction: np.ndarray
    loss: np.ndarray
    first_fooled: np.ndarray
    groups: np.ndarray | None = None
    about: Mapping[str, Any] = {}


def save_verdicts(path: str | Path, verdicts: Verdicts) -> None:
    """Writes verdicts as an npz without pickled objects, whole or not at all.

    Args:
      path: the file, e.g. `workdir/verdicts/pgd.npz`; its folder is made where missing.
      verdicts: arrays of matching shapes.

    Raises:
      OSError: the disk is full or read-only; names the path.
      ValueError: a shape does not fit, or ids are neither numbers nor strings.
    """
    arrays = {name: np.asarray(value) for name, value in verdicts._asdict().items()
              if name != 'about' and value is not None}
    _check_verdicts(arrays, path)
    arrays['about'] = np.asarray(json.dumps(_plain(verdicts.about), allow_nan=False))
    save_arrays(path, arrays)


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as a compressed npz, whole or not at all.

    Args:
      path: the file; its folder is made where missing.
      arrays: of numbers or strings.

    Raises:
      OSError: the disk is full or read-only; names the path.
    """
    with _naming(path, f'write {Path(path).name}'):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as partial, open(partial, 'wb') as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)


def load_verdicts(path: str | Path) -> Verdicts:
    """Reads what `save_verdicts` wrote; nothing is unpickled.

    Args:
      path: the file.

    Returns:
      The verdicts.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is truncated, foreign, or its shapes do not match; names the path.
    """
    try:
        with open(path, 'rb') as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop('about')))
        _check_verdicts(arrays, path)
        return Verdicts(**arrays, about=about)
    except (zipfile.BadZipFile, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f'{path} holds no verdicts or is damaged ({error}); delete it and run the '
                         f'evaluation again') from error


def _check_verdicts(arrays: Mapping[str, np.ndarray], path: str | Path) -> None:
    n, num_eps = len(arrays['index']), len(arrays['eps'])
    for name, array in arrays.items():
        per_example = name in ('index', 'label', 'groups')
        shape = (n,) if per_example else (num_eps,) if name == 'eps' else (num_eps, n)
        if array.shape != shape:
            raise ValueError(f'{path}: {name} must have shape {shape}, got {array.shape}')
        if array.dtype == object:
            raise ValueError(f'{path}: {name} must hold numbers or strings, got Python objects')


def _encode(row: Row) -> bytes:
    """One line of strict JSON: NaN is null, and infinities, which JSON lacks, are strings."""
    fields = {field.name: _plain(getattr(row, field.name)) for field in dataclasses.fields(row)}
    return (json.dumps(fields, allow_nan=False) + '\n').encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f'a record holds plain values only, got {type(value).__name__}: {value!r}')


def _decode(line: bytes, path: str | Path, number: int) -> Row:
    try:
        fields = json.loads(line)
        fields |= {name: math.nan if fields[name] is None else float(fields[name])
                   for name in _NUMBERS}
        return Row(**fields | {'warnings': tuple(fields['warnings'])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{path}, line {number} is no result row ({error}); it was edited or written '
                         f'by another version: remove the line or run the evaluation again') from error


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _mend(handle: int, path: str | Path) -> int:
    """Ends the file with a whole line, cutting off a torn one; returns its size."""
    size = os.fstat(handle).st_size
    if not size or os.pread(handle, 1, size - 1) == b'\n':
        return size
    content = os.pread(handle, size, 0)
    start = content.rfind(b'\n') + 1
    if _is_whole(content[start:]):
        return size + os.write(handle, b'\n')
    logging.warning('%s: removed a torn last line that a killed run left', path)
    os.ftruncate(handle, start)
    return start


@contextmanager
def _naming(path: str | Path, action: str) -> Iterator[None]:
    """Says what could not be done with which file when the disk refuses."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f'cannot {action}: {reason}', str(path)) from error


@contextmanager
def _replacing(path: str | Path) -> Iterator[Path]:
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
