"""Batches of fixed size, a pure function of (seed, step): deterministic, resumable, sharded.

Contents: `steps_per_epoch`, `TrainBatches` (random access by step), `train_batches` (an endless
iterator from any step, read ahead by threads), `eval_batches` (every example once, in order).

A batch is a dict of NumPy arrays: 'image' float32 `[B, *spatial, C]`, 'label' int32 `[B]`, 'mask'
bool `[B]`, 'index' int32 `[B]`, and 'unlabeled' as 'image' where there are unlabeled images. The last
batch of a pass is filled up with copies of real images (zeros would enter the batch statistics of a
BatchNorm), with mask False and index = len(source).

Example:

    for batch in train_batches(source, batch_size=128, seed=0, start_step=state.step):
        state = train_step(state, batch)
    for batch in eval_batches(source, batch_size=256):
        ...
"""
import functools
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from medrobust_jax.data.source import Source, all_labels, read_batch

NumpyBatch = dict[str, np.ndarray]
ENDLESS = 2**40  # steps; an iterator has to have some length
_LABELED, _BALANCED, _UNLABELED = 0, 1, 2  # streams of random numbers
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """The number of batches in which every example comes once; the last one may be padded."""
    return -(-len(source) // batch_size)


class TrainBatches:
    """Shuffled training batches with random access: `batches[step]`.

    Step k lies in epoch `k // steps_per_epoch`; every epoch visits every example exactly once, in
    an order that depends on (seed, epoch) alone. With `class_balanced`, step k instead draws
    examples with replacement, classes being dealt in turn, so that over the steps every class
    comes equally often; nothing is padded then.

    With `cycle` batches are cut from one endless row of passes, so that a batch may end one pass and
    begin the next, and nothing is padded: for sources that do not fill a batch, whose rows then come
    several times in it. `unlabeled` images are always drawn so, in an order of their own.

    Args:
      source: the training examples.
      batch_size: of the global batch, over all processes.
      seed: of the order.
      class_balanced: see above. Reads all labels once.
      cycle: see above; makes no difference where classes are balanced.
      unlabeled: a source of which every batch carries batch_size images, as 'unlabeled', or None.
      replays: so many steps in turn get the same batch.
      process_index: this process's number, `jax.process_index()`.
      process_count: the number of processes, `jax.process_count()`; each gets its own contiguous
        part of every global batch.

    Raises:
      ValueError: for a batch size that is not positive or not divisible by `process_count`, replays < 1,
        unlabeled images of another shape, or, with `class_balanced`, a class without examples.
    """

    def __init__(self, source: Source, *, batch_size: int, seed: int, class_balanced: bool = False,
                 cycle: bool = False, unlabeled: Source | None = None, replays: int = 1, process_index: int = 0,
                 process_count: int = 1) -> None:
        self._part = _part(batch_size, process_index, process_count)
        if replays < 1:
            raise ValueError(f'replays = {replays} must be at least 1')
        if unlabeled is not None and unlabeled.info.image_shape != source.info.image_shape:
            raise ValueError(f'unlabeled images {unlabeled.info.image_shape} must be shaped as the labeled ones, '
                             f'{source.info.image_shape}')
        self._cycle, self._unlabeled, self._replays = cycle, unlabeled, replays
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._steps = steps_per_epoch(source, batch_size)
        self._members = _members_by_class(source) if class_balanced else None
        # Threads may read across the end of an epoch: keep a few orders, not one.
        self._order = functools.lru_cache(maxsize=8)(self._epoch_order)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> NumpyBatch:  # the name that grain's protocol asks for
        step = int(index) // self._replays
        rows = self._rows(step)
        batch = _read(self._source, rows, len(rows), self._batch_size, self._part)
        if self._unlabeled is not None:
            rows = self._cycled_rows(step, len(self._unlabeled), _UNLABELED)
            batch['unlabeled'] = read_batch(self._unlabeled, rows[self._part])['image']
        return batch

    def _rows(self, step: int) -> np.ndarray:
        """The rows that count; fewer than the batch size at the end of a pass."""
        if self._members is not None:
            return self._balanced_rows(step)
        if self._cycle:
            return self._cycled_rows(step, len(self._source), _LABELED)
        epoch, position = divmod(step, self._steps)
        return self._order(epoch, len(self._source), _LABELED)[position * self._batch_size:][:self._batch_size]

    def _epoch_order(self, epoch: int, size: int, stream: int) -> np.ndarray:
        return _generator(self._seed, epoch, stream).permutation(size)

    def _cycled_rows(self, step: int, size: int, stream: int) -> np.ndarray:
        epochs, places = np.divmod(step * self._batch_size + np.arange(self._batch_size), size)
        return np.concatenate([self._order(int(epoch), size, stream)[places[epochs == epoch]]
                               for epoch in np.unique(epochs)])

    def _balanced_rows(self, step: int) -> np.ndarray:
        assert self._members is not None
        generator = _generator(self._seed, step, _BALANCED)
        # Dealt on from where the last step stopped, so that any batch size is balanced in the long run.
        dealt = (step * self._batch_size + np.arange(self._batch_size)) % len(self._members)
        rows = np.empty(self._batch_size, dtype=np.int64)
        for label, members in enumerate(self._members):
            chosen = dealt == label
            rows[chosen] = generator.choice(members, size=int(chosen.sum()))
        return generator.permutation(rows)  # a process's part must not hold one class only


def train_batches(source: Source, *, batch_size: int, seed: int, start_step: int = 0, class_balanced: bool = False,
                  cycle: bool = False, unlabeled: Source | None = None, replays: int = 1, process_index: int = 0,
                  process_count: int = 1) -> Iterator[NumpyBatch]:
    """Endless training batches from `start_step` on, read ahead by threads; see `TrainBatches`.

    Batch k depends on (seed, k) only: resuming at step k is `start_step=k`.
    """
    if start_step < 0:
        raise ValueError(f'start_step = {start_step} must not be negative')
    batches = TrainBatches(source, batch_size=batch_size, seed=seed, class_balanced=class_balanced, cycle=cycle,
                           unlabeled=unlabeled, replays=replays, process_index=process_index,
                           process_count=process_count)
    return iter(grain.MapDataset.source(batches)[start_step:].to_iter_dataset(READ_AHEAD))


def eval_batches(source: Source, *, batch_size: int, process_index: int = 0,
                 process_count: int = 1) -> Iterator[NumpyBatch]:
    """Every example once, in the source's order, in batches of one size.

    Args:
      source: the examples.
      batch_size: of the global batch, over all processes.
      process_index: this process's number.
      process_count: the number of processes.

    Returns:
      An iterator over `steps_per_epoch(source, batch_size)` batches.

    Raises:
      ValueError: for a batch size that is not positive or not divisible by `process_count`.
    """
    part = _part(batch_size, process_index, process_count)
    return (_read(source, np.arange(start, min(start + batch_size, len(source))),
                  min(batch_size, len(source) - start), batch_size, part)
            for start in range(0, len(source), batch_size))


def _read(source: Source, rows: np.ndarray, real: int, batch_size: int, part: slice) -> NumpyBatch:
    """One process's part of the global batch whose first `real` rows count."""
    rows = np.resize(rows, batch_size)[part]  # repeats real rows to fill up
    mask = (np.arange(batch_size) < real)[part]
    record = read_batch(source, rows)
    record.pop('group', None)  # ids may be text, which no device holds; evaluation gathers them
    return {**record, 'mask': mask, 'index': np.where(mask, rows, len(source)).astype(np.int32)}


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of the global batch that belong to one process."""
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f'batch_size = {batch_size} must be positive and divisible by the number of '
                         f'processes, {process_count}')
    if not 0 <= process_index < process_count:
        raise ValueError(f'process_index = {process_index} of process_count = {process_count}')
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _members_by_class(source: Source) -> list[np.ndarray]:
    labels = all_labels(source)
    members = [np.flatnonzero(labels == label) for label in range(source.info.num_classes)]
    for label, rows in enumerate(members):
        if rows.size == 0:
            raise ValueError(f'{source.info.name}/{source.info.split}: class_balanced needs examples of '
                             f'every class; class {label} ({source.info.class_names[label]}) has none')
    return members


def _generator(*words: Any) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([int(word) for word in words])))
