"""The training loop: steps, evaluations, checkpoints, and a way back from any interruption.

Contents: `fit`, `FitResult`, `RecentMetrics`.

Example:

    result = fit(state, forward=forward, defense=defense, optimizer=optimizer,
                 train_batches=lambda start: train_batches(source, batch_size=64, seed=0, start_step=start),
                 steps=1000, steps_per_epoch=100, evaluate_fn=evaluate, select_metric='robust_accuracy',
                 eval_every=100, checkpoint_every=100, workdir=workdir, config_dict=config, seed=0, mesh=mesh)
"""
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Defense, Forward, PyTree
from medrobust_jax.parallel import hosts
from medrobust_jax.parallel.mesh import put_batch
from medrobust_jax.train.checkpoint import Checkpoints
from medrobust_jax.train.interrupts import stop_requests
from medrobust_jax.train.progress import Progress
from medrobust_jax.train.state import TrainState
from medrobust_jax.train.step import Augment, Metrics, make_end_epoch, make_train_step
from medrobust_jax.train.writer import MetricWriter

NumpyBatch = Mapping[str, np.ndarray]


class FitResult(NamedTuple):
    """What training ends with.

    Attributes:
      state: the last state.
      best: the best checkpoint's metadata, with 'step' and 'metrics'; None only where a finished
        run's best was found damaged.
    """

    state: TrainState
    best: dict[str, Any] | None


def fit(state: TrainState, *, forward: Forward, defense: Defense, optimizer: optax.GradientTransformation,
        train_batches: Callable[[int], Iterator[NumpyBatch]], steps: int, steps_per_epoch: int,
        evaluate_fn: Callable[[PyTree, PyTree], Mapping[str, float]], select_metric: str, eval_every: int,
        checkpoint_every: int, workdir: str | Path, config_dict: Mapping[str, Any], seed: int, mesh: Mesh,
        log_every: int = 50, ema_decay: float | None = None, augment: Augment | None = None, replays: int = 1,
        progress: bool | None = None) -> FitResult:
    """Trains to `steps`, from the newest checkpoint in `workdir` or from `state`.

    Whenever and however the process ends, the same call goes on from the newest checkpoint and, on
    CPU with the same number of devices, ends in the same parameters to the bit: batches are a
    function of the step, keys of seed, step and example. SIGTERM and Ctrl-C finish the step, save
    it, and raise (SystemExit 143, KeyboardInterrupt); with several processes this happens at the
    next step that is logged.

    Args:
      state: from `create_state`; consumed.
      forward: the model as training sees it.
      defense: the training objective.
      optimizer: from `create_optimizer`.
      train_batches: `start_step -> iterator` over this process's part of batches start_step,
        start_step + 1, ...
      steps: the step to end with.
      steps_per_epoch: `defense.end_epoch` is called after every so many steps.
      evaluate_fn: `(params, model_state) -> {name: value}` on validation data, given the moving
        averages where they are kept; must be deterministic, and must not keep its arguments.
      select_metric: the best checkpoint has the highest of this name (the earliest among equals).
      eval_every: steps between evaluations; the last step is always evaluated.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      workdir: the run's folder, see `checkpoint` and `writer` for what it holds.
      config_dict: plain values that decide the run's results; another config is refused.
      seed: the run's seed.
      mesh: from `data_mesh`.
      log_every: steps between rows of metrics.
      ema_decay: as given to `create_state`.
      augment: `(keys [B], batch) -> batch`, or None.
      replays: see `make_train_step`; `train_batches` must repeat its batches accordingly.
      progress: True for a bar, False for silence, None to decide by the terminal.

    Returns:
      The last state and the best checkpoint's metadata ('step', 'metrics', ...).

    Raises:
      FloatingPointError: where the loss or the gradient is not finite, naming the step; what is
        saved is from before it.
      ValueError: where the workdir holds another config, or `select_metric` is not measured.
      OSError: where the disk is full or read-only.
    """
    train_step = make_train_step(forward, defense, optimizer, augment=augment, seed=seed,
                                 ema_decay=ema_decay, mesh=mesh, replays=replays)
    end_epoch = make_end_epoch(defense, mesh=mesh)
    with Checkpoints(workdir, config=config_dict) as checkpoints, stop_requests() as stop:
        state, best = _resume(checkpoints, state)
        start = int(state.step)
        batches, recent = train_batches(start), RecentMetrics()
        with MetricWriter(workdir, start_step=start) as writer, \
                Progress(start=start, steps=steps, show=progress) as bar:
            for step in range(start + 1, steps + 1):
                batch = _next_batch(mesh, batches, step)
                state, metrics = train_step(state, batch)
                recent.add(step, metrics)
                bar.advance(images=len(batch['mask']))
                if step % steps_per_epoch == 0:
                    state = end_epoch(state, step // steps_per_epoch)

                logging_due, last = step % log_every == 0, step == steps
                stopping = _agreed(stop.requested, now=logging_due)
                evaluating = step % eval_every == 0 or last
                saving = step % checkpoint_every == 0 or last or stopping
                if logging_due or evaluating or saving:
                    means = recent.means()  # stops at a step that is not finite, before it is saved
                    speed = bar.report(step, {'loss': means['loss']})
                    writer.write(step, {f'train/{name}': value for name, value in means.items()}
                                 | {'train/images_per_second': speed})
                if evaluating:
                    scores = _evaluate(evaluate_fn, state, select_metric)
                    writer.write(step, {f'validation/{name}': value for name, value in scores.items()})
                    bar.say(f'step {step}/{steps}  validation: '
                            + '  '.join(f'{name} {value:.4g}' for name, value in scores.items()))
                    if best is None or scores[select_metric] > best['metrics'][select_metric]:
                        best = {'step': step, 'metrics': scores}
                        checkpoints.save_best(step, *state.evaluation_variables(), metadata=best)
                    bar.restart_clock()
                if saving:
                    checkpoints.save(step, state)
                if stopping:
                    checkpoints.close()
                    stop.leave(f'Stopped after step {step} of {steps}, which is saved in {workdir}; run the same '
                               f'command again to go on.')
    return FitResult(state, best)


def _resume(checkpoints: Checkpoints, state: TrainState) -> tuple[TrainState, dict[str, Any] | None]:
    """The newest saved state (else `state` itself) and the metadata of the best one so far."""
    restored = checkpoints.restore_latest(state)
    best = checkpoints.best_metadata()
    if restored is None:
        return state, best
    logging.info('Going on from step %d.', int(restored.step))
    return restored, best


def _next_batch(mesh: Mesh, batches: Iterator[NumpyBatch], step: int) -> dict[str, jax.Array]:
    """The next batch, on the devices."""
    batch = next(batches, None)
    if batch is None:
        raise ValueError(f'train_batches ended before step {step}; it must go on for as long as it is asked')
    return put_batch(mesh, batch)


def _agreed(flag: bool, *, now: bool) -> bool:
    """`flag`; with several processes whether it holds on any, asked only when `now` on all."""
    if jax.process_count() == 1:
        return flag
    return now and hosts.any_process(flag)


def _evaluate(evaluate_fn: Callable[[PyTree, PyTree], Mapping[str, float]], state: TrainState,
              select_metric: str) -> dict[str, float]:
    """The scores of a state, refused where the one that selects is missing or not a number."""
    scores = {name: float(value) for name, value in evaluate_fn(*state.evaluation_variables()).items()}
    if select_metric not in scores:
        did_you_mean(select_metric, scores, 'select_metric')
    if not np.isfinite(scores[select_metric]):
        raise FloatingPointError(f'validation {select_metric} is {scores[select_metric]} at step '
                                 f'{int(state.step)}, so that no best checkpoint can be chosen')
    return scores


class RecentMetrics:
    """The metrics of the steps since the last report, left on the device until asked for."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._metrics: list[Metrics] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes one step's metrics; waits for the step before, so that the host runs one step ahead."""
        if self._metrics:
            jax.block_until_ready(self._metrics[-1])
        self._steps.append(step)
        self._metrics.append(metrics)

    def means(self) -> dict[str, float]:
        """The means over all examples since the last call, which are then forgotten.

        Raises:
          FloatingPointError: naming the first step whose loss or gradient is not finite.
        """
        steps, metrics = self._steps, jax.device_get(self._metrics)
        self._steps, self._metrics = [], []
        for step, values in zip(steps, metrics, strict=True):
            for name in ('loss', 'gradient_norm'):
                if not np.isfinite(values[name][0]):
                    raise FloatingPointError(
                        f'the {name} of step {step} is {values[name][0]}; lower learning_rate, set clip_norm, or '
                        f'lengthen warmup_steps. Checkpoints hold states from before this step.')
        return {name: float(sum(values[name][0] for values in metrics)
                            / max(sum(values[name][1] for values in metrics), 1)) for name in metrics[0]}
