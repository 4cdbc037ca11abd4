"""Checkpoints: written in the background, checked when read, never unpickled.

    workdir/checkpoints/latest/<step>/   the two newest states, to go on from
    workdir/checkpoints/best/<step>/     what is to be evaluated, chosen on validation data
    workdir/checkpoints/unreadable/      damaged ones, set aside by a later run

'latest' and 'best' are kept apart, because one manager that keeps the best deletes the newest.
Every checkpoint carries the run's config and hashes of its arrays, so that a checkpoint of another
run and a damaged one are told apart from a good one. The only file that imports orbax.

Contents: `Checkpoints`, `load_for_evaluation`, `load_defense_state`, `ForeignCheckpoint`.

Example:

    with Checkpoints(workdir, config=config) as checkpoints:
        state = checkpoints.restore_latest(state) or state
        checkpoints.save(int(state.step), state)
    params, model_state, metadata = load_for_evaluation(workdir)
"""
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import PyTree
from medrobust_jax.parallel import hosts
from medrobust_jax.train.fingerprints import config_fingerprint, differing_fields, fingerprint
from medrobust_jax.train.state import TrainState
from medrobust_jax.train.storage import writing_to

WHICH = ('best', 'latest')
ARRAYS = ('variables', 'ema', 'training')  # a checkpoint's items beside 'metadata'


class ForeignCheckpoint(ValueError):
    """A checkpoint of a run with another config."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's folder.
      config: nested plain values (numbers, strings, booleans, None, lists, dicts) that decide the
        run's results. A workdir that holds checkpoints of another config is refused.

    Raises:
      OSError: where the folder cannot be written.
    """

    def __init__(self, workdir: str | Path, *, config: Mapping[str, Any]) -> None:
        self.folder = Path(workdir).absolute() / 'checkpoints'
        self._config = json.loads(json.dumps(dict(config)))  # as it will be read back: tuples are lists
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._latest = _manager(self.folder / 'latest', keep=2)
            self._best = _manager(self.folder / 'best', keep=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: TrainState, metadata: Mapping[str, Any] | None = None) -> None:
        """Starts writing the state after `step` steps; returns once it has been copied.

        Raises:
          OSError: where this save or, more often, the one before it could not be written.
        """
        # The best must be on disk before a later state is: a run resumed from that state will not
        # evaluate the best again.
        self._finish()
        # A copy, because the next step reuses the state's buffers while this one is still written.
        state = jax.tree.map(np.array, state)
        params, model_state = state.evaluation_variables()
        items = {'variables': _named(state.params, state.model_state),
                 'training': {'step': state.step, 'opt_state': state.opt_state,
                              'defense_state': state.defense_state}}
        if state.ema is not None:
            items['ema'] = _named(*state.ema)
        self._write(self._latest, step, items, params, model_state, metadata)

    def save_best(self, step: int, params: PyTree, model_state: PyTree,
                  metadata: Mapping[str, Any] | None = None) -> None:
        """Replaces the best: `params` and `model_state` are what will be evaluated.

        Raises:
          OSError: as `save`.
        """
        params, model_state = jax.tree.map(np.array, (params, model_state))
        self._finish()
        for later in [known for known in self._best.all_steps() if known >= step]:
            self._best.delete(later)  # else the manager would take the later step for the newer one
        self._write(self._best, step, {'variables': _named(params, model_state)}, params, model_state, metadata)

    def _write(self, manager: ocp.CheckpointManager, step: int, items: dict[str, PyTree], params: PyTree,
               model_state: PyTree, metadata: Mapping[str, Any] | None) -> None:
        record = {**(metadata or {}), 'step': step, 'config': self._config,
                  'config_fingerprint': config_fingerprint(self._config),
                  'checkpoint_fingerprint': fingerprint(_named(params, model_state)),
                  'state_fingerprint': fingerprint(items)}
        arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        composite = ocp.args.Composite(**arguments, metadata=ocp.args.JsonSave(record))
        with writing_to(self.folder, Exception):
            manager.save(step, args=composite, force=True)

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """The newest whole state, or None where there is no checkpoint.

        Damaged checkpoints are set aside with a warning, and the next older one is taken.

        Args:
          like: a state of the same structure, whose shapes, dtypes and shardings are taken.

        Raises:
          ValueError: where the checkpoints are of another config (the message lists the differing
            fields), or where there are some but none is whole.
        """
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)

        def read(step: int) -> TrainState:
            self._refuse_foreign(_read(self._latest, step, {})['metadata'])
            wanted = {'variables': _named(target.params, target.model_state),
                      'training': {'step': target.step, 'opt_state': target.opt_state,
                                   'defense_state': target.defense_state}}
            if target.ema is not None:
                wanted['ema'] = _named(*target.ema)
            items = _read(self._latest, step, wanted)
            _verify({name: items[name] for name in wanted}, items['metadata']['state_fingerprint'])
            ema = (items['ema']['params'], items['ema']['model_state']) if 'ema' in wanted else None
            return TrainState(**items['variables'], **items['training'], ema=ema)

        return _newest_whole(self._latest, read, self._set_aside)

    def best_metadata(self) -> dict[str, Any] | None:
        """What was saved with the best, or None; a damaged best is set aside with a warning.

        Raises:
          ValueError: where the best is of another config.
        """
        def read(step: int) -> dict[str, Any]:
            metadata = _read(self._best, step, {})['metadata']
            self._refuse_foreign(metadata)
            return _read_variables(self._best, step, 'variables')[1]

        try:
            return _newest_whole(self._best, read, self._set_aside)
        except ForeignCheckpoint:
            raise
        except ValueError as error:
            logging.warning('%s The next evaluation will count as the best.', error)
            return None

    def _refuse_foreign(self, metadata: Mapping[str, Any]) -> None:
        lines = differing_fields(metadata['config'], self._config)
        if lines:
            raise ForeignCheckpoint(
                f'{self.folder.parent} holds a run with another config; choose another --workdir, or set the '
                f'fields back. Differing (theirs -> yours):\n  ' + '\n  '.join(lines))

    def _set_aside(self, manager: ocp.CheckpointManager, step: int) -> None:
        """Moves a damaged checkpoint out of the way of the one that will be saved at its step."""
        source = Path(manager.directory) / str(step)
        aside = self.folder / 'unreadable'
        if hosts.is_primary():
            aside.mkdir(exist_ok=True)
            number = len(list(aside.iterdir()))
            shutil.move(source, aside / f'{source.parent.name}-{step}-{number}')
        hosts.barrier(f'set aside {step}')
        manager.reload()

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          OSError: where it could not be.
        """
        self._finish()
        with writing_to(self.folder, Exception):
            for manager in (self._best, self._latest):
                manager.close()

    def _finish(self) -> None:
        """Waits for both managers: across processes their background threads share one barrier's
        name, and two saves in flight at once deadlock."""
        with writing_to(self.folder, Exception):
            for manager in (self._best, self._latest):
                manager.wait_until_finished()


def load_for_evaluation(workdir: str | Path, which: str = 'best') -> tuple[PyTree, PyTree, dict[str, Any]]:
    """The model of a finished or running run.

    Args:
      workdir: the run's folder.
      which: 'best' (chosen on validation data) or 'latest'. Where the run keeps moving averages,
        both are the averages.

    Returns:
      `(params, model_state, metadata)`; metadata holds 'step', 'config', 'config_fingerprint',
      'checkpoint_fingerprint' and what was saved along.

    Raises:
      FileNotFoundError: where there is no such checkpoint.
      ValueError: for an unknown `which`, or where no checkpoint is whole.
    """
    if which not in WHICH:
        did_you_mean(which, WHICH, 'checkpoint')
    folder = Path(workdir).absolute() / 'checkpoints' / which
    if not folder.is_dir():
        raise FileNotFoundError(f"no '{which}' checkpoint: {folder} does not exist; train with this --workdir "
                                f'first')
    with _manager(folder, keep=None) as manager:
        def read(step: int) -> tuple[dict[str, PyTree], dict[str, Any]]:
            has_average = which == 'latest' and (folder / str(step) / 'ema').exists()
            return _read_variables(manager, step, 'ema' if has_average else 'variables')

        found = _newest_whole(manager, read, None)
    if found is None:
        raise FileNotFoundError(f"no '{which}' checkpoint in {folder}; the run has not saved one yet")
    variables, metadata = found
    variables = jax.tree.map(jnp.asarray, variables)
    return variables['params'], variables['model_state'], metadata


def load_defense_state(workdir: str | Path) -> PyTree:
    """The defense's own tables in the newest readable checkpoint, as NumPy arrays: margins, moving averages.

    For looking at them; what training goes on with is read, and checked, by `Checkpoints.restore_latest`.

    Returns:
      The tree that `Defense.init` made, as it was then; an empty tree for defenses that keep nothing.

    Raises:
      FileNotFoundError: where there is no checkpoint.
      ValueError: where none can be read.
    """
    folder = Path(workdir).absolute() / 'checkpoints' / 'latest'
    if not folder.is_dir():
        raise FileNotFoundError(f"no 'latest' checkpoint: {folder} does not exist; train with this --workdir "
                                f'first')
    with _manager(folder, keep=None) as manager:
        def read(step: int) -> PyTree:
            found = manager.item_metadata(step)['training']
            shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), found.tree)
            return _read(manager, step, {'training': shapes})['training'].get('defense_state', {})

        state = _newest_whole(manager, read, None)
    if state is None:
        raise FileNotFoundError(f"no 'latest' checkpoint in {folder}; the run has not saved one yet")
    return state


def _named(params: PyTree, model_state: PyTree) -> dict[str, PyTree]:
    return {'params': params, 'model_state': model_state}


def _manager(folder: Path, *, keep: int | None) -> ocp.CheckpointManager:
    """A manager that writes in the background; with `keep` None it only reads."""
    handlers = {name: ocp.StandardCheckpointHandler() for name in ARRAYS}
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None,
                                           cleanup_tmp_directories=keep is not None)
    return ocp.CheckpointManager(
        folder, options=options, item_handlers={**handlers, 'metadata': ocp.JsonCheckpointHandler()})


def _read(manager: ocp.CheckpointManager, step: int, wanted: Mapping[str, PyTree]) -> Any:
    """The metadata and the `wanted` items, in the structure and placement given."""
    arguments = {name: ocp.args.StandardRestore(item) for name, item in wanted.items()}
    return manager.restore(step, args=ocp.args.Composite(**arguments, metadata=ocp.args.JsonRestore()))


def _read_variables(manager: ocp.CheckpointManager, step: int, item: str) -> tuple[PyTree, dict[str, Any]]:
    """`({'params', 'model_state'}, metadata)` on the host, in the structure found on disk."""
    found = manager.item_metadata(step)[item]
    shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), found.tree)
    items = _read(manager, step, {item: shapes})
    _verify(items[item], items['metadata']['checkpoint_fingerprint'])
    return items[item], items['metadata']


def _verify(tree: PyTree, expected: str) -> None:
    if fingerprint(tree) != expected:
        raise ValueError('the arrays do not match the fingerprint saved with them')


def _newest_whole(manager: ocp.CheckpointManager, read: Callable[[int], Any],
                  set_aside: Callable[[ocp.CheckpointManager, int], None] | None) -> Any:
    """`read(step)` of the newest step for which it succeeds; None where there is no step."""
    broken = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            with _without_late_callbacks():
                found = read(step)
        except ForeignCheckpoint:
            raise
        except Exception as error:  # damage shows as any of a dozen types
            reason = (str(error).splitlines() or [''])[0][:200]
            logging.warning('The checkpoint of step %d in %s cannot be read (%s: %s); trying the one before it.',
                            step, manager.directory, type(error).__name__, reason)
            broken.append(step)
            continue
        for damaged in broken:
            if set_aside is not None:
                set_aside(manager, damaged)
        return found
    if broken:
        raise ValueError(f'none of the checkpoints in {manager.directory} (steps {broken}) can be read. Move the '
                         f'folder away to start afresh.')
    return None


@contextlib.contextmanager
def _without_late_callbacks() -> Iterator[None]:
    """Keeps quiet what a failed read prints besides its error.

    Orbax reads all arrays at once and closes its event loop at the first failure; every other array
    then complains, from a thread, that the loop is closed.
    """
    before = sys.unraisablehook

    def filtered(unraisable: Any) -> None:
        if 'Event loop is closed' not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = filtered
    try:
        yield
    except Exception:
        time.sleep(0.5)  # until the other reads have ended
        raise
    finally:
        sys.unraisablehook = before
