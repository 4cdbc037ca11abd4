"""Results written: grid points as rows, verdicts, adversarial images and pictures.

Contents: `Subject` (what is judged), `ResultWriter`.

Example:

    write = ResultWriter(subject, examples, layout, workdir, seed=0, stops=True)
    write.clean(point, started, warnings=())
    records.update_rows(workdir / 'results.jsonl', write.rows)
"""
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from medrobust_jax.core.balls import NORMS
from medrobust_jax.core.types import PyTree, Task
from medrobust_jax.evaluate import records, sanity, verdicts
from medrobust_jax.evaluate.files import save_arrays
from medrobust_jax.evaluate.programs import Layout, ModelForward
from medrobust_jax.evaluate.provenance import provenance
from medrobust_jax.evaluate.suite import Ensemble, Examples, GridPoint, Threat, worst_case
from medrobust_jax.metrics.intervals import proportion

AnyThreat = Threat | Ensemble


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


@dataclasses.dataclass
class ResultWriter:
    """Turns grid points into rows and files."""

    subject: Subject
    examples: Examples
    layout: Layout
    workdir: Path
    seed: int
    stops: bool
    rows: list[records.Row] = dataclasses.field(default_factory=list)
    _withstood_clean: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))

    def _add(self, estimates: Mapping, point: GridPoint | None, *, attack: str, norm: str, eps: float,
             options: Mapping, warnings: tuple[str, ...], seconds: float, **measured: Any) -> None:
        evidence = provenance(**self.subject.fingerprints, block_width=self.layout.width,
                              wall_seconds=seconds) | measured
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
        self._withstood_clean = np.asarray(point.result.acceptable)
        self._add(estimates, point, attack='clean', norm='', eps=0.0, options={}, warnings=warnings,
                   seconds=time.monotonic() - started)

    def threat(self, threat: AnyThreat, members: Sequence[Threat], stages: Sequence[list[GridPoint]],
               warnings: tuple[str, ...], *, save_images: bool) -> None:
        points, options = stages[-1], dict(threat.options)
        if isinstance(threat, Ensemble):
            options['members'] = {member.name: {**member.options, 'num_restarts': member.num_restarts,
                                                'num_targets': member.num_targets} for member in members}
        else:
            options['num_restarts'] = threat.num_restarts
        for position, point in enumerate(points):
            measured: dict[str, Any] = {'passes_needed': round(point.passes_needed, 4)}
            if isinstance(threat, Ensemble):
                measured['standing_after'] = {member.name: int(stage[position].result.acceptable.sum())
                                              for member, stage in zip(members, stages, strict=True)}
            own = sanity.check_point(point, self.examples, norm=threat.norm)
            self._add(self._verdict_estimates(point), point, attack=threat.name, norm=threat.norm, eps=point.eps,
                       options=options, warnings=(*warnings, *own), seconds=point.wall_seconds, **measured)
        about = {**self.subject.identity, **self.subject.fingerprints, 'attack': threat.name, 'norm': threat.norm,
                 'attack_seed': self.seed, **options}
        predict = self.subject.task.predict
        verdicts.save_verdicts(self.workdir / 'verdicts' / f'{threat.name}.npz', verdicts.Verdicts(
            index=np.asarray(self.examples.index), label=np.asarray(self.examples.targets),
            eps=np.asarray([p.eps for p in points]), groups=self.examples.groups, about=about,
            acceptable=np.stack([p.result.acceptable for p in points]),
            prediction=np.stack([np.asarray(predict(p.outputs)) for p in points]),
            loss=np.stack([p.result.loss for p in points]),
            first_fooled=np.stack([p.result.first_fooled for p in points]),
            attacked=np.stack([p.attacked for p in points]), withstood_clean=self._withstood_clean))
        if save_images:
            save_arrays(self.workdir / 'adversarial' / f'{threat.name}.npz', {
                'images': np.stack([p.result.images for p in points]), 'index': np.asarray(self.examples.index),
                'eps': np.asarray([p.eps for p in points]), 'norm': np.asarray(threat.norm),
                'acceptable': np.stack([p.result.acceptable for p in points]),
                'checkpoint_fingerprint': np.asarray(self.subject.fingerprints['checkpoint_fingerprint'])})

    def worst_case(self, threats: Sequence[AnyThreat], grids: Mapping[str, list[GridPoint]],
                   warnings: tuple[str, ...]) -> None:
        by_radius: dict[tuple[str, float], dict[str, GridPoint]] = {}
        for threat in threats:
            for point in grids[threat.name]:
                by_radius.setdefault((threat.norm, point.eps), {})[threat.name] = point
        for (norm, eps), points in sorted(by_radius.items()):
            if len(threats) > 1 and (len(points) > 1 or norm in NORMS):  # of one attack there is no worst
                (standing,) = worst_case([[point] for point in points.values()])
                self._add({'robust_accuracy': proportion(standing, self.examples.groups)}, None,
                          attack='worst_case', norm=norm, eps=eps, options={'attacks': list(points)},
                          warnings=warnings, seconds=0.0)

    def pictures(self, clean: GridPoint, threats: Sequence[AnyThreat], grids: Mapping[str, list[GridPoint]],
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
        save_arrays(self.workdir / 'pictures.npz', jax.device_get(arrays))
