"""Result rows sorted into what tables and figures show: one panel per data set, norm and metric.

Contents: `ResultRow`, `Summary`, `Curve`, `Panel`, `summarize`, `summary_of`, `headline_panels`, `main_first`,
`agree`, `eps_text`.

Nothing is hidden on the way: several seeds become a mean with its range and their number, two
checkpoints of one recipe and seed stay apart, and what is missing stays missing.

Example:

    panel, = summarize(read_rows(workdir / 'results.jsonl'), metric='accuracy')
    for curve in panel.curves:
        for eps, summary in curve.points.items():
            print(curve.system, curve.attack, eps_text(eps, panel.norm), summary.value)
"""
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from medrobust_jax.report.naming import MAIN, NO_KIND, Kind, Metric, headline, kind_of, metric_of, speaks_of_all

CLEAN = 'clean'
# An evaluation that took the worst over attacks for each image reports it under one of these.
PER_IMAGE = ('worst_case', 'worst-case', 'worst case')
WORST = 'worst attack'
WORST_PER_IMAGE = 'worst per image'


class ResultRow(Protocol):
    """A row of `results.jsonl`, as `medrobust_jax.evaluate.records.Row` holds it."""

    @property
    def dataset(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def defense(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def attack(self) -> str: ...
    @property
    def norm(self) -> str: ...
    @property
    def eps(self) -> float: ...
    @property
    def metric(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def interval(self) -> str: ...
    @property
    def attack_options(self) -> Mapping[str, Any]: ...
    @property
    def forward_passes(self) -> float: ...
    @property
    def backward_passes(self) -> float: ...
    @property
    def warnings(self) -> Sequence[str]: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...


class Summary(NamedTuple):
    """One cell: a run's estimate with its 95 % interval, or several runs' mean with its range.

    Attributes:
      value: the estimate, or the mean over runs; NaN where undefined.
      low: the lower end of the interval, or the lowest run.
      high: the upper end of the interval, or the highest run.
      runs: how many training runs (seeds) are behind it.
      n: examples per run.
      method: of the interval; 'range over runs' for several.
    """

    value: float
    low: float
    high: float
    runs: int
    n: int
    method: str


class Curve(NamedTuple):
    """One system under one attack.

    Attributes:
      system: the defense's name, with what else tells it apart (architecture, checkpoint).
      attack: the attack's name; `CLEAN` for none, `WORST` for the attack that did most harm at each
        eps, `WORST_PER_IMAGE` where the evaluation took the worst over attacks for each image.
      points: eps to summary, by rising eps.
      notes: pairs of a remark and the eps it holds for.
    """

    system: str
    attack: str
    points: dict[float, Summary]
    notes: list[tuple[str, float]]


class Panel(NamedTuple):
    """What belongs into one table and one figure.

    Attributes:
      dataset: its name.
      split: of the data set.
      norm: of the balls; '' where there are clean results only.
      metric: what was measured.
      eps: all radii > 0, rising.
      systems: in order of appearance.
      runs: system to its number of runs.
      curves: in order of system, then clean, worst, and each attack.
      kind: the data set's task and unit.
    """

    dataset: str
    split: str
    norm: str
    metric: str
    eps: tuple[float, ...]
    systems: tuple[str, ...]
    runs: dict[str, int]
    curves: list[Curve]
    kind: Kind = NO_KIND

    @property
    def shown(self) -> Metric:
        """How the metric is shown."""
        return metric_of(self.metric, self.kind)


def eps_text(eps: float, norm: str) -> str:
    """A radius as it is spoken of: multiples of 1/255 for the maximum norm, else a number."""
    return f'{round(eps * 255, 3):g}/255' if norm == 'linf' and eps else f'{eps:g}'


def main_first(rows: Iterable[ResultRow]) -> list[str]:
    """The metrics at hand, without those of single structures, of foreign images and of explanations: what leads
    each task, then as they appear.
    """
    rows = [row for row in rows if speaks_of_all(row.metric)]
    leading = [metric for own in _by_dataset(rows).values() for metric in headline(own)]
    found = _ordered(row.metric for row in rows)
    order = _ordered([*(metric for metric in leading if metric not in MAIN), *MAIN, *found])
    return sorted(found, key=order.index)


def headline_panels(rows: Iterable[ResultRow]) -> list[Panel]:
    """The panels that speak for each data set: its task's own metric, then the share of acceptable outputs.

    Of metrics with results on clean images only, there is no panel beside others that have attacked ones.
    """
    panels = []
    for own in _by_dataset(list(rows)).values():
        found = [panel for metric in headline(own) for panel in summarize(own, metric=metric)]
        panels += [panel for panel in found if panel.eps] or found
    return panels


def agree(rows: Iterable[ResultRow], metric: str, other: str) -> bool:
    """Whether two metrics have equal values wherever `other` was measured under a single attack.

    Accuracy equals robust accuracy unless the criterion is a looser one (grades with a tolerance).
    """
    of = {name: {(run_of(row), row.split, row.seed, row.attack, row.norm, row.eps): row.value for row in rows
                 if row.metric == name and row.attack not in PER_IMAGE} for name in (metric, other)}
    return bool(of[other]) and all(of[metric].get(place) == value for place, value in of[other].items())


def system_names(rows: Iterable[ResultRow]) -> dict[tuple[str, str, str, str], str]:
    """What to call each trained system.

    The defense; with the architecture where rows hold several; with the checkpoint where one
    recipe and seed was trained more than once, since averaging those would hide a difference.

    Args:
      rows: result rows.

    Returns:
      `run_of(row)` to name, in order of appearance.
    """
    rows = list(rows)
    several_models = len({row.model for row in rows}) > 1
    of_seed = defaultdict(set)
    for row in rows:
        of_seed[row.dataset, row.model, row.defense, row.seed].add(_checkpoint(row))
    twice = {key[:3] for key, checkpoints in of_seed.items() if len(checkpoints) > 1}
    names = {}
    for row in rows:
        name = f'{row.defense}, {row.model}' if several_models else row.defense
        if (row.dataset, row.model, row.defense) in twice:
            name += f' ({_checkpoint(row)[:8] or "no checkpoint"})'
        names[run_of(row)] = name
    return names


def run_of(row: ResultRow) -> tuple[str, str, str, str]:
    """What identifies the trained system of a row, seeds taken together unless they collide."""
    return (row.dataset, row.model, row.defense, _checkpoint(row))


def summarize(rows: Iterable[ResultRow], *, metric: str | None = None) -> list[Panel]:
    """Sorts rows of one metric into panels.

    Args:
      rows: of any data sets, systems, attacks and seeds, complete or not.
      metric: the metric to keep; None for the first of `main_first`.

    Returns:
      One panel per data set, split and norm, in order of appearance; none without such rows.
    """
    rows = list(rows)
    names = system_names(rows)
    kinds = {dataset: kind_of(own) for dataset, own in _by_dataset(rows).items()}
    metric = metric or next(iter(main_first(rows)), '')
    rows = [row for row in rows if row.metric == metric]
    panels = []
    for dataset, split in _ordered((row.dataset, row.split) for row in rows):
        here = [row for row in rows if (row.dataset, row.split) == (dataset, split)]
        clean = [row for row in here if row.attack == CLEAN]
        for norm in _ordered(row.norm for row in here if row.attack != CLEAN) or ['']:
            attacked = [row for row in here if row.attack != CLEAN and row.norm == norm]
            panel = _panel(clean + attacked, names, (dataset, split, norm, metric))
            panels.append(panel._replace(kind=kinds[dataset]))
    return panels


def _panel(rows: list[ResultRow], names: Mapping[Any, str], head: tuple[str, str, str, str]) -> Panel:
    by_system: dict[str, list[ResultRow]] = defaultdict(list)
    for row in rows:
        by_system[names[run_of(row)]].append(row)
    runs = {system: len({_run(row) for row in own}) for system, own in by_system.items()}
    curves = []
    for system, own in by_system.items():
        attacks = _ordered(row.attack for row in own if row.attack not in (CLEAN, *PER_IMAGE))
        of_attack = {attack: [row for row in own if row.attack == attack] for attack in attacks}
        per_image = [row for row in own if row.attack in PER_IMAGE]
        curves += [_curve(system, CLEAN, [row for row in own if row.attack == CLEAN], runs[system])]
        if per_image:
            curves += [_curve(system, WORST_PER_IMAGE, per_image, runs[system])]
        elif len(attacks) > 1:
            worst, notes = _worst(of_attack)
            curves += [_curve(system, WORST, worst, runs[system])._replace(notes=notes)]
        curves += [_curve(system, attack, own, runs[system]) for attack, own in of_attack.items()]
    eps = sorted({row.eps for row in rows if row.attack != CLEAN and row.eps > 0})
    return Panel(*head, tuple(eps), tuple(by_system), runs, [c for c in curves if c.points])


def _curve(system: str, attack: str, rows: list[ResultRow], runs: int) -> Curve:
    points, notes = {}, []
    for eps in sorted({row.eps for row in rows}):
        here = [row for row in rows if row.eps == eps]
        points[eps] = summary_of(here)
        notes += [(warning, eps) for row in here for warning in row.warnings]
        notes += [(row.interval, eps) for row in here if '(' in row.interval]
        if len(here) < runs:
            notes.append((f'{len(here)} of {runs} runs have a result here', eps))
        if len({str(sorted(row.attack_options.items())) for row in here}) > 1:
            notes.append(("the attack's settings differ between runs", eps))
        if len({row.n for row in here}) > 1:
            notes.append(('the number of examples differs between runs', eps))
    return Curve(system, attack, points, _ordered(notes))


def summary_of(rows: Sequence[ResultRow]) -> Summary:
    """One cell: the estimate of a single run, or the mean of several with its range; at least one row."""
    if len(rows) == 1:
        row = rows[0]
        return Summary(row.value, row.low, row.high, 1, row.n, row.interval)
    values = [row.value for row in rows]
    if any(map(math.isnan, values)):
        return Summary(math.nan, math.nan, math.nan, len(rows), rows[0].n, 'undefined in some runs')
    return Summary(math.fsum(values) / len(values), min(values), max(values), len(rows),
                   min(row.n for row in rows), 'range over runs')


def _worst(of_attack: dict[str, list[ResultRow]]) -> tuple[list[ResultRow], list[tuple[str, float]]]:
    """Per run and eps the row of the attack that did most harm, and which attacks were missing."""
    rows = [row for own in of_attack.values() for row in own]
    sign = 1 if metric_of(rows[0].metric).more_is_better else -1
    worst, notes = [], []
    for run, eps in _ordered((_run(row), row.eps) for row in rows):
        here = [row for row in rows if (_run(row), row.eps) == (run, eps)]
        defined = [row for row in here if not math.isnan(row.value)]
        worst.append(min(defined or here, key=lambda row: sign * row.value))
        missing = [attack for attack in of_attack if attack not in {row.attack for row in here}]
        if missing:
            notes.append((f'not over {", ".join(missing)}: no result here', eps))
    return worst, _ordered(notes)


def _by_dataset(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    return {dataset: [row for row in rows if row.dataset == dataset]
            for dataset in _ordered(row.dataset for row in rows)}


def _checkpoint(row: ResultRow) -> str:
    return str(row.provenance.get('checkpoint_fingerprint') or '')


def _run(row: ResultRow) -> tuple[int, str]:
    return (row.seed, _checkpoint(row))


def _ordered(items: Iterable[Any]) -> list[Any]:
    """Distinct items in order of appearance."""
    return list(dict.fromkeys(items))
