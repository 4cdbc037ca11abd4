"""A model judged: clean quality, every threat over its grid, checks, rows, verdicts and pictures.

Contents: `Subject` (what is judged), `judge`.

Example:

    rows = judge(subject, examples, [Threat('pgd100', pgd(num_steps=100), num_restarts=5)],
                 (1/255, 8/255), layout=layout, seed=0, workdir=workdir)
"""
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from medrobust_jax.core.types import PyTree, Task
from medrobust_jax.evaluate import records, sanity
from medrobust_jax.evaluate.programs import Layout, ModelForward
from medrobust_jax.evaluate.suite import Examples, GridPoint, Threat, attack_grid, clean_point, worst_case
from medrobust_jax.metrics.intervals import proportion

RESERVED = ('clean', 'worst_case')  # names of rows that are no threat's
# Pairs in which the first attack should not beat the second, by the name of the method.
WEAKER = (('fgsm', 'pgd'), ('fgsm', 'smia'), ('ifgsm', 'pgd'),
          ('noise', 'fgsm'), ('noise', 'ifgsm'), ('noise', 'pgd'), ('noise', 'smia'))


class Subject(NamedTuple):
    """The model that is judged, and who it is.

    Attributes:
      forward: `(variables, images, keys) -> outputs`.
      variables: its weights.
      task: what is asked of it.
      identity: the fields of `records.Row` that say who it is: dataset, split, model, defense, seed.
      fingerprints: 'config_fingerprint', 'checkpoint_fingerprint', 'dataset_fingerprint'.
    """

    forward: ModelForward
    variables: PyTree
    task: Task
    identity: Mapping[str, Any]
    fingerprints: Mapping[str, str]


def judge(subject: Subject, examples: Examples, threats: Sequence[Threat], eps_grid: Sequence[float], *,
          layout: Layout, seed: int, workdir: str | Path, stop_when_fooled: bool = True,
          num_pictures: int = 4, progress: Callable[[str, int, int], None] = lambda name, done, total: None,
          ) -> list[records.Row]:
    """Evaluates everything and writes `results.jsonl`, `verdicts/*.npz` and `pictures.npz` in `workdir`.

    Args:
      subject: the model.
      examples: the test images.
      threats: the attacks.
      eps_grid: radii > 0, in units of [0, 1].
      layout: block width, chunk and devices.
      seed: of the attacks' draws.
      workdir: where the results go; rows of an earlier evaluation of the same checkpoint by the
        same attack, eps and metric are replaced.
      stop_when_fooled: see `suite.attack_grid`. If False, attacked rows also hold score-based
        metrics (AUROC, ...), which need every example attacked to the end.
      num_pictures: attacked images to keep for the report.
      progress: called with the threat's name, the examples finished, and their number.

    Returns:
      The rows of this evaluation. They are in the file as soon as their attack has ended.

    Raises:
      ValueError: for two threats of one name, or one named as in `RESERVED`.
    """
    names = [threat.name for threat in threats]
    if len({*names, *RESERVED}) < len(names) + len(RESERVED):
        raise ValueError(f'attacks are called {names}: each needs a name of its own, other than {RESERVED}')
    started, workdir = time.monotonic(), Path(workdir)
    results = workdir / 'results.jsonl'
    shared = {'layout': layout, 'seed': seed}
    model = (subject.forward, subject.variables, subject.task)
    clean = clean_point(*model, examples, **shared)
    general = (*sanity.check_gradients(*model, examples, **shared),
               *sanity.check_randomness(subject.forward, subject.variables, examples, **shared))
    write = _Writer(subject, examples, layout, workdir, seed, stop_when_fooled)
    write.clean(clean, started, general)
    records.update_rows(results, write.rows)
    grids: dict[str, list[GridPoint]] = {}
    for threat in threats:
        warnings = (*general, *sanity.check_floor(*model, threat, examples, **shared))
        points = attack_grid(*model, threat, examples, eps_grid, clean=clean, stop_when_fooled=stop_when_fooled,
                             progress=partial(progress, threat.name), **shared)
        for point in points:
            logging.info('%s %s eps %.5g: robust accuracy %.4f', subject.identity['defense'], threat.name,
                         point.eps, point.result.acceptable.mean())
        grids[threat.name] = points
        warnings += _order_warnings(threat, threats, grids)
        write.threat(threat, points, warnings)
        records.update_rows(results, write.rows)
    if len(threats) > 1:
        write.worst_case(threats, grids, general)
    if grids and num_pictures:
        write.pictures(clean, threats, grids, num_pictures)
    records.update_rows(results, write.rows)
    for sentence in sorted({s for row in write.rows for s in row.warnings}):
        logging.warning('Check: %s', sentence)
    return write.rows


def _order_warnings(threat: Threat, threats: Sequence[Threat], grids: Mapping[str, list[GridPoint]]
                    ) -> tuple[str, ...]:
    """Compares a threat with the weaker and stronger ones that have been run already."""
    found: tuple[str, ...] = ()
    for other in threats:
        if other.name in grids:
            for weak, strong in ((other, threat), (threat, other)):
                if _is_weaker(weak, strong):
                    found += sanity.check_order(grids[weak.name], grids[strong.name], weak_name=weak.name,
                                                strong_name=strong.name)
    return found


def _is_weaker(weak: Threat, strong: Threat) -> bool:
    """Whether `weak` should not beat `strong`: an older method, or the same with fewer steps or restarts."""
    methods = (weak.options.get('attack'), strong.options.get('attack'))
    same = methods[0] is not None and methods[0] == methods[1]
    efforts = [(threat.attack.num_steps, threat.num_restarts) for threat in (weak, strong)]
    fewer = efforts[0] != efforts[1] and all(a <= b for a, b in zip(*efforts, strict=True))
    return weak.norm == strong.norm and (methods in WEAKER or (same and fewer))


@dataclasses.dataclass
class _Writer:
    """Turns grid points into rows and files."""

    subject: Subject
    examples: Examples
    layout: Layout
    workdir: Path
    seed: int
    stops: bool
    rows: list[records.Row] = dataclasses.field(default_factory=list)

    def _rows(self, estimates: Mapping, point: GridPoint | None, *, attack: str, norm: str, eps: float,
              options: Mapping, warnings: tuple[str, ...], seconds: float) -> None:
        evidence = records.provenance(**self.subject.fingerprints, block_width=self.layout.width,
                                      wall_seconds=seconds)
        settings = {**options, 'attack_seed': self.seed, 'stop_when_fooled': self.stops} if options else {}
        self.rows += records.rows_of(
            estimates, **self.subject.identity, attack=attack, norm=norm, eps=eps,
            attack_options=settings,
            forward_passes=point.forward_passes if point else float('nan'),
            backward_passes=point.backward_passes if point else float('nan'),
            warnings=warnings, provenance=evidence)

    def _verdict_estimates(self, point: GridPoint) -> dict:
        task, groups = self.subject.task, self.examples.groups
        estimates = {'robust_accuracy': proportion(point.result.acceptable, groups)}
        if self.stops:
            decided = task.verdict_metrics(task.predict(point.outputs), self.examples.targets, groups)
        else:
            decided = task.metrics(point.outputs, self.examples.targets, groups)
        return {**estimates, **decided}

    def clean(self, point: GridPoint, started: float, warnings: tuple[str, ...]) -> None:
        estimates = self.subject.task.metrics(point.outputs, self.examples.targets, self.examples.groups)
        estimates['robust_accuracy'] = proportion(point.result.acceptable, self.examples.groups)
        self._rows(estimates, point, attack='clean', norm='', eps=0.0, options={}, warnings=warnings,
                   seconds=time.monotonic() - started)

    def threat(self, threat: Threat, points: Sequence[GridPoint], warnings: tuple[str, ...]) -> None:
        options = {**threat.options, 'num_restarts': threat.num_restarts}
        for point in points:
            own = sanity.check_point(point, self.examples, norm=threat.norm)
            self._rows(self._verdict_estimates(point), point, attack=threat.name, norm=threat.norm, eps=point.eps,
                       options=options, warnings=(*warnings, *own), seconds=point.wall_seconds)
        about = {**self.subject.identity, **self.subject.fingerprints, 'attack': threat.name, 'norm': threat.norm,
                 'attack_seed': self.seed, **options}
        predict = self.subject.task.predict
        records.save_verdicts(self.workdir / 'verdicts' / f'{threat.name}.npz', records.Verdicts(
            index=np.asarray(self.examples.index), label=np.asarray(self.examples.targets),
            eps=np.asarray([p.eps for p in points]), groups=self.examples.groups, about=about,
            acceptable=np.stack([p.result.acceptable for p in points]),
            prediction=np.stack([np.asarray(predict(p.outputs)) for p in points]),
            loss=np.stack([p.result.loss for p in points]),
            first_fooled=np.stack([p.result.first_fooled for p in points])))

    def worst_case(self, threats: Sequence[Threat], grids: Mapping[str, list[GridPoint]],
                   warnings: tuple[str, ...]) -> None:
        for norm in sorted({threat.norm for threat in threats}):
            names = [threat.name for threat in threats if threat.norm == norm]
            chosen = [grids[name] for name in names]
            for point, standing in zip(chosen[0], worst_case(chosen), strict=True):
                self._rows({'robust_accuracy': proportion(standing, self.examples.groups)}, None,
                           attack='worst_case', norm=norm, eps=point.eps, options={'attacks': names},
                           warnings=warnings, seconds=0.0)

    def pictures(self, clean: GridPoint, threats: Sequence[Threat], grids: Mapping[str, list[GridPoint]],
                 count: int) -> None:
        """Keeps the first correctly decided image of every class in turn, for every attack and eps."""
        labels, standing = np.asarray(self.examples.targets), clean.result.acceptable
        by_class = [np.flatnonzero(standing & (labels == c)) for c in np.unique(labels)]
        depth = max((len(rows) for rows in by_class), default=0)
        ordered = [rows[i] for i in range(depth) for rows in by_class if i < len(rows)]
        rows = np.asarray(ordered[:count], dtype=int)
        predict = self.subject.task.predict
        arrays = {'task': np.asarray(self.subject.task.name), 'index': self.examples.index[rows],
                  'label': labels[rows], 'clean': self.examples.images[rows],
                  'clean_outputs': np.asarray(clean.outputs)[rows],
                  'clean_prediction': np.asarray(predict(clean.outputs))[rows]}
        for name, norm in ((threat.name, threat.norm) for threat in threats):
            points = grids[name]
            arrays[f'{name}/norm'] = np.asarray(norm)
            arrays[f'{name}/eps'] = np.asarray([p.eps for p in points])
            arrays[f'{name}/images'] = np.stack([p.result.images[rows] for p in points])
            arrays[f'{name}/outputs'] = np.stack([np.asarray(p.outputs)[rows] for p in points])
            arrays[f'{name}/prediction'] = np.stack([np.asarray(predict(p.outputs))[rows] for p in points])
        records.save_arrays(self.workdir / 'pictures.npz', jax.device_get(arrays))
