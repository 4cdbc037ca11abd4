"""Metrics of a run, written as it goes: JSON lines, and TensorBoard where it is installed.

    workdir/metrics.jsonl     one row per write: {"step": 100, "train/loss": 0.52, ...}
    workdir/tensorboard/      the same numbers

Contents: `MetricWriter`, `read_rows`.

Example:

    with MetricWriter(workdir, start_step=0) as writer:
        writer.write(100, {'train/loss': 0.52})
"""
import importlib.util
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from medrobust_jax.parallel import hosts
from medrobust_jax.train.storage import writing_to


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class MetricWriter:
    """Writes a run's metrics, flushed row by row; does nothing on processes but the first.

    Args:
      workdir: the run's folder.
      start_step: the step that the run goes on from. Later rows, left by a run that was killed
        after its last checkpoint, are dropped: they will be written again.
      tensorboard: whether to write TensorBoard files, where `tensorboardX` is installed.

    Raises:
      OSError: where the folder cannot be written.
    """

    def __init__(self, workdir: str | Path, *, start_step: int, tensorboard: bool = True) -> None:
        self.path = Path(workdir) / 'metrics.jsonl'
        self._file = self._board = None
        if not hosts.is_primary():
            return
        with writing_to(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = [row for row in read_rows(self.path) if row['step'] <= start_step]
            partial = self.path.with_suffix('.partial')
            partial.write_text(''.join(json.dumps(row) + '\n' for row in kept))
            os.replace(partial, self.path)  # a kill leaves the old rows or the new ones, never half
            self._file = self.path.open('a')
        if tensorboard and importlib.util.find_spec('tensorboardX') is not None:
            from tensorboardX import SummaryWriter
            self._board = SummaryWriter(str(self.path.parent / 'tensorboard'), purge_step=start_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row; numbers that are not finite are written as null.

        Raises:
          OSError: where the disk is full or read-only.
        """
        if self._file is None:
            return
        row = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        with writing_to(self.path.parent):
            self._file.write(json.dumps({'step': step, **row}) + '\n')
            self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        sinks, self._file, self._board = (self._file, self._board), None, None
        with writing_to(self.path.parent):  # closing writes what is left
            for sink in sinks:
                if sink is not None:
                    sink.close()
