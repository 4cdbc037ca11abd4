"""What an evaluation leaves behind: the rows of `results.jsonl`.

Contents: `Row`, `rows_of`, `append_row`, `read_rows`, `merge_rows`, `update_rows`.

A run may be killed at any moment: a row is written in one piece or, if the machine dies halfway,
recognized as torn and dropped.

Example:

    evidence = provenance(checkpoint_fingerprint=fingerprint, block_width=8, wall_seconds=41.3)
    for row in rows_of(estimates, dataset='pneumoniamnist', ..., provenance=evidence):
        append_row(workdir / 'results.jsonl', row)
    rows = read_rows(workdir / 'results.jsonl')
"""
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from medrobust_jax.evaluate.files import naming, plain, replacing
from medrobust_jax.metrics.intervals import Estimate


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
    def subject(self) -> tuple[Any, ...]:
        """What was measured, and on which images: rows of one subject differ in the attack and the metric."""
        return (self.dataset, self.split, self.model, self.defense, self.seed,
                self.provenance.get('checkpoint_fingerprint'))

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies the measurement: a later row with the same key replaces this one."""
        return (*self.subject, self.attack, self.norm, self.eps, self.metric)


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
    with naming(path, 'write results'):
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
    with naming(path, 'read results'):
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


def update_rows(path: str | Path, rows: Iterable[Row], *, keep_fn: Callable[[Row], bool] | None = None
                ) -> list[Row]:
    """Merges rows into a file, replacing it as a whole: it holds the old rows or all of the new.

    Args:
      path: the file; made where missing.
      rows: what was measured since.
      keep_fn: which of the file's rows stay, if no new one replaces them; None keeps all.

    Returns:
      All rows of the file.

    Raises:
      OSError: the disk is full or read-only; names the path, and leaves the file as it was.
      ValueError: the file holds a line that is no row.
    """
    old = read_rows(path) if Path(path).exists() else []
    merged = merge_rows(old if keep_fn is None else filter(keep_fn, old), rows)
    with naming(path, 'write results'), replacing(path) as partial:
        partial.write_bytes(b''.join(map(_encode, merged)))
    return merged


def _encode(row: Row) -> bytes:
    """One line of strict JSON: NaN is null, and infinities, which JSON lacks, are strings."""
    fields = {field.name: plain(getattr(row, field.name)) for field in dataclasses.fields(row)}
    return (json.dumps(fields, allow_nan=False) + '\n').encode()


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
