"""Tables of single structures, classes and findings, apart from the tables of all, which stay readable.

Contents: `structure_tables`.

Example:

    for table in structure_tables(rows):
        print(to_text(table))                  # e.g. the Dice of each structure, clean and at each eps
"""
from collections.abc import Iterable

from medrobust_jax.report.naming import metric_of, split_structure
from medrobust_jax.report.summary import CLEAN, Panel, ResultRow, Summary, eps_text, headline_panels, summarize
from medrobust_jax.report.tables import NORM_NAMES, Table, brackets, cell_text, system_text

_WHAT = {'segmentation': 'structure', 'detection': 'class', 'multilabel': 'finding'}


def structure_tables(rows: Iterable[ResultRow]) -> list[Table]:
    """One table per data set, norm and metric that single structures have: structures down, eps across.

    At each eps stands the attack that did most harm to that structure, which may be another one for the next
    structure; the first line of a system is the metric over all structures. The metric that leads the data set's
    tables comes first.

    Args:
      rows: result rows of any number of data sets.

    Returns:
      The tables; none where no metric is of a single structure.
    """
    rows, tables = list(rows), []
    leading = {panel.metric for panel in headline_panels(rows)}
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset]
        columns: dict[str, list[str]] = {}
        for name in dict.fromkeys(row.metric for row in own):
            base, structure = split_structure(name)
            if structure:
                columns.setdefault(base, []).append(name)
        for base in sorted(columns, key=lambda base: base not in leading):  # stable
            whole = {(p.split, p.norm): p for p in summarize(own, metric=base)}
            parts = {name: {(p.split, p.norm): p for p in summarize(own, metric=name)} for name in columns[base]}
            for place in dict.fromkeys(place for panels in parts.values() for place in panels):
                chosen = {base: whole[place]} if place in whole else {}
                chosen |= {name: panels[place] for name, panels in parts.items() if place in panels}
                tables.append(_table(base, chosen))
    return tables


def _table(base: str, panels: dict[str, Panel]) -> Table:
    first = next(iter(panels.values()))
    metric, what = metric_of(base, first.kind), _WHAT.get(first.kind.task, 'structure')
    radii = sorted({eps for panel in panels.values() for eps in panel.eps})
    lines, emphasized = [], set()
    for system in dict.fromkeys(system for panel in panels.values() for system in panel.systems):
        head = system_text(system, max(panel.runs.get(system, 0) for panel in panels.values()))
        for name, panel in panels.items():
            points = _points(panel, system)
            if not points:
                continue
            if name == base:
                emphasized.add(len(lines))
            lines.append([head, split_structure(name)[1] or 'all',
                          *(cell_text(points.get(eps), percent=metric.percent) for eps in (0., *radii))])
            head = ''
    caption = (f'{first.dataset} {first.split}: {metric.label}{" in %" if metric.percent else ""} by {what}; '
               + (f'{NORM_NAMES.get(first.norm, first.norm)} attacks, at each eps the one that did most harm to '
                  f'that {what}; ' if radii else '') + brackets(panels.values()))
    columns = ['defense', what, CLEAN, *(f'eps {eps_text(eps, first.norm)}' for eps in radii)]
    return Table(caption, columns, lines, [], frozenset(emphasized))


def _points(panel: Panel, system: str) -> dict[float, Summary]:
    """The system's clean result and that of its worst attack at each eps; a single attack is its worst."""
    curves = [curve for curve in panel.curves if curve.system == system]
    clean = next((curve.points for curve in curves if curve.attack == CLEAN), {})
    worst = next((curve.points for curve in curves if curve.attack != CLEAN), {})
    return {**clean, **worst}
