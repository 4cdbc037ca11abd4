"""Results written: grid points as rows, verdicts, adversarial images and pictures.

Contents: `Subject` (what is judged), `ResultWriter`; `rows_at`, `rows_to_show`, `named_arrays` for what is kept to
show.

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
from medrobust_jax.core.types import PyTree, Targets, Task
from medrobust_jax.evaluate import records, sanity, verdicts
from medrobust_jax.evaluate.files import save_arrays
from medrobust_jax.evaluate.programs import Layout, ModelForward, row_by_row
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
      criterion: the thresholds of the task's criterion; empty for its default, or where it has none.
      class_names: in label order; empty where they are not known.
      setting: plain values for the rows' provenance that say what stands before the model; empty for nothing.
    """

    forward: ModelForward
    variables: PyTree
    task: Task
    identity: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    criterion: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    setting: Mapping[str, Any] = {}


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
    _clean_quality: np.ndarray | None = None
    _shown: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    _pictures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def _add(self, estimates: Mapping, point: GridPoint | None, *, attack: str, norm: str, eps: float,
             options: Mapping, warnings: tuple[str, ...], seconds: float, **measured: Any) -> None:
        evidence = provenance(**self.subject.fingerprints, block_width=self.layout.width,
                              wall_seconds=seconds) | measured | dict(self.subject.setting)
        if self.subject.criterion:
            evidence['criterion'] = list(self.subject.criterion)
        settings = recorded(options, seed=self.seed, stops=self.stops) if options else {}
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
            decided = task.verdict_metrics(row_by_row(task.predict)(point.outputs), self.examples.targets, groups)
        else:
            decided = task.metrics(point.outputs, self.examples.targets, groups)
        return {**estimates, **decided}

    def clean(self, point: GridPoint, started: float, warnings: tuple[str, ...]) -> None:
        estimates = self.subject.task.metrics(point.outputs, self.examples.targets, self.examples.groups)
        estimates['robust_accuracy'] = proportion(point.result.acceptable, self.examples.groups)
        self._withstood_clean = np.asarray(point.result.acceptable)
        if self.subject.task.quality is not None:
            self._clean_quality = row_by_row(self.subject.task.quality)(point.outputs, self.examples.targets)
        self._add(estimates, point, attack='clean', norm='', eps=0.0, options={}, warnings=warnings,
                   seconds=time.monotonic() - started)

    def threat(self, threat: AnyThreat, members: Sequence[Threat], stages: Sequence[list[GridPoint]],
               warnings: tuple[str, ...], *, save_images: bool) -> None:
        points, options = stages[-1], options_of(threat)
        for position, point in enumerate(points):
            measured: dict[str, Any] = {'passes_needed': round(point.passes_needed, 4)}
            if isinstance(threat, Ensemble):
                measured['standing_after'] = {member.name: int(stage[position].result.acceptable.sum())
                                              for member, stage in zip(members, stages, strict=True)}
            own = sanity.check_point(point, self.examples, norm=threat.norm)
            self._add(self._verdict_estimates(point), point, attack=threat.name, norm=threat.norm, eps=point.eps,
                       options=options, warnings=(*warnings, *own), seconds=point.wall_seconds, **measured)
        about = {**self.subject.identity, **self.subject.fingerprints, 'task': self.subject.task.name,
                 'criterion': list(self.subject.criterion), 'stop_when_fooled': self.stops,
                 'attack': threat.name, 'norm': threat.norm, 'attack_seed': self.seed, **options}
        verdicts.save_verdicts(self.workdir / 'verdicts' / f'{threat.name}.npz', verdicts.Verdicts(
            index=np.asarray(self.examples.index), **self._decisions(points),
            eps=np.asarray([p.eps for p in points]), groups=self.examples.groups, about=about,
            acceptable=np.stack([p.result.acceptable for p in points]),
            loss=np.stack([p.result.loss for p in points]),
            first_fooled=np.stack([p.result.first_fooled for p in points]),
            attacked=np.stack([p.attacked for p in points]), withstood_clean=self._withstood_clean,
            clean_quality=self._clean_quality))
        self._collect_pictures(threat, points)
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

    def _decisions(self, points: Sequence[GridPoint]) -> dict[str, np.ndarray]:
        """What verdict files hold of the outputs: classes where these are the decision, else the quality."""
        task, targets = self.subject.task, self.examples.targets
        kept = {}
        if task.target_names == ('label',):
            kept['label'] = np.asarray(targets)
            kept['prediction'] = np.stack([row_by_row(task.predict)(p.outputs) for p in points])
        if task.quality is not None:
            kept['quality'] = np.stack([row_by_row(task.quality)(p.outputs, targets) for p in points])
        return kept

    def choose_pictures(self, clean: GridPoint, count: int) -> None:
        """Chooses whose images are shown: the first with an acceptable output, of every class in turn."""
        task = self.subject.task
        self._shown = rows_to_show(task, self.examples.targets, np.asarray(clean.result.acceptable), count)
        self._pictures = {'task': np.asarray(task.name), 'index': self.examples.index[self._shown],
                          'clean': self.examples.images[self._shown],
                          **named_arrays('target', rows_at(self.examples.targets, self._shown)),
                          **self._shown_outputs('clean', [clean])}

    def _collect_pictures(self, threat: AnyThreat, points: Sequence[GridPoint]) -> None:
        if self._pictures:
            self._pictures |= {f'{threat.name}/norm': np.asarray(threat.norm),
                               f'{threat.name}/eps': np.asarray([p.eps for p in points]),
                               f'{threat.name}/images': np.stack([p.result.images[self._shown] for p in points]),
                               **self._shown_outputs(threat.name, points)}

    def _shown_outputs(self, name: str, points: Sequence[GridPoint]) -> dict[str, np.ndarray]:
        """Predictions, with a leading axis for the points; and outputs where they are small."""
        count, predict = len(self._shown), self.subject.task.predict
        # At least one row is decoded: where nothing is shown its shape alone is kept.
        rows = self._shown if count else np.zeros(1, int)
        outputs = [rows_at(point.outputs, rows) for point in points]
        shown = [named_arrays(f'{name}/prediction', rows_at(predict(each), np.arange(count))) for each in outputs]
        if getattr(outputs[0], 'ndim', 0) == 2:
            shown = [{**one, f'{name}/outputs': each[:count]} for one, each in zip(shown, outputs, strict=True)]
        return {key: np.stack([one[key] for one in shown]) for key in shown[0]}

    def save_pictures(self) -> None:
        """Writes what was kept to show to `pictures.npz`."""
        if self._pictures:
            save_arrays(self.workdir / 'pictures.npz', self._pictures)


def options_of(threat: AnyThreat) -> dict[str, Any]:
    """What rows say of a threat's settings."""
    if isinstance(threat, Ensemble):
        return {**threat.options, 'members': {
            member.name: {**member.options, 'num_restarts': member.num_restarts, 'num_targets': member.num_targets}
            for member in threat.members}}
    return {**threat.options, 'num_restarts': threat.num_restarts}


def recorded(options: Mapping[str, Any], *, seed: int, stops: bool) -> dict[str, Any]:
    """A row's 'attack_options': a threat's, the seed of the draws, and whether images were left once fooled."""
    return {**options, 'attack_seed': seed, 'stop_when_fooled': stops}


def rows_to_show(task: Task, targets: Targets, standing: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first `count` examples that stand, of every class in turn where targets are classes."""
    by_class = [np.flatnonzero(standing)]
    if task.target_names == ('label',):
        by_class = [np.flatnonzero(standing & (targets == c)) for c in np.unique(np.asarray(targets))]
    depth = max((len(rows) for rows in by_class), default=0)
    rows = [rows[i] for i in range(depth) for rows in by_class if i < len(rows)]
    return np.asarray(rows[:count], dtype=int)


def rows_at(tree: PyTree, rows: np.ndarray) -> PyTree:
    """The rows `[n]` of every leaf, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


def named_arrays(name: str, tree: PyTree) -> dict[str, np.ndarray]:
    """An array under its name; of a dict every entry as `name/key`."""
    if isinstance(tree, Mapping):
        return {f'{name}/{key}': np.asarray(leaf) for key, leaf in tree.items()}
    return {name: np.asarray(tree)}
