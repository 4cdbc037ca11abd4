"""How far explanations moved under attack, as tables.

Contents: `explanation_tables`.

Example:

    for table in explanation_tables(read_rows(workdir / 'results.jsonl')):
        print(to_text(table))                  # Grad-CAM and integrated gradients, against noise of the same size
"""
from collections.abc import Iterable, Mapping

from medrobust_jax.report.naming import EXPLANATIONS, MOVEMENTS, is_explanation, metric_of
from medrobust_jax.report.summary import WORST, Panel, ResultRow, Summary, eps_text, summarize
from medrobust_jax.report.tables import MISSING, NORM_NAMES, Table, brackets, cell_text, system_text

_COLUMNS = {'': 'attack', '/noise': 'noise of the same size', '/beyond_noise': 'attack minus noise',
            '/unchanged': 'attack, answer unchanged', '/changed': 'attack, answer changed'}


def explanation_tables(rows: Iterable[ResultRow]) -> list[Table]:
    """How far maps moved, one table per data set and norm: systems, attacks and measures down.

    Args:
      rows: result rows; those that are of no explanation are passed over.

    Returns:
      The tables; none without such rows.
    """
    rows = [row for row in rows if is_explanation(row.metric)]
    panels: dict[tuple[str, str, str], dict[str, Panel]] = {}
    for metric in dict.fromkeys(row.metric for row in rows):
        for panel in summarize(rows, metric=metric):
            panels.setdefault((panel.dataset, panel.split, panel.norm), {})[metric] = panel
    return [_table(*place, own) for place, own in panels.items()]


def _table(dataset: str, split: str, norm: str, panels: Mapping[str, Panel]) -> Table:
    lines, footnotes = [], []
    for place, of_metric in _places(panels).items():
        head = [place[0], place[1], eps_text(place[2], norm)]
        for method, measure in [(m, v) for m in EXPLANATIONS for v in MOVEMENTS]:
            if f'{method}_{measure}' not in of_metric:
                continue
            shown = metric_of(f'{method}_{measure}')
            cells = [_cell(of_metric.get(f'{method}_{measure}{suffix}'), suffix, percent=shown.percent)
                     for suffix in _COLUMNS]
            remark = of_metric[f'{method}_{measure}'].method.partition(' (')[2].rstrip(')')
            if remark and remark not in footnotes:
                footnotes.append(remark)
            lines.append([*head, shown.label + (', %' if shown.percent else ''), *cells,
                          str(footnotes.index(remark) + 1) if remark else ''])
            head = ['', '', '']
    columns = ['defense', 'attack', 'eps', 'map and measure', *_COLUMNS.values(), 'notes']
    if not footnotes:
        columns, lines = columns[:-1], [line[:-1] for line in lines]
    curves = [curve for panel in panels.values() for curve in panel.curves]
    counts = [summary.n for curve in curves for summary in curve.points.values()]
    caption = (f'{dataset} {split}: maps of clean images against maps of the same images attacked '
               f'({NORM_NAMES.get(norm, norm)}) or with noise; means over up to {max(counts)} images; '
               + brackets(panels.values()))
    return Table(caption, columns, lines, footnotes)


def _places(panels: Mapping[str, Panel]) -> dict[tuple[str, str, float], dict[str, Summary]]:
    """(system, attack, eps) to metric to its summary."""
    found: dict[tuple[str, str, float], dict[str, Summary]] = {}
    for metric, panel in panels.items():
        for curve in panel.curves:
            for eps, summary in curve.points.items() if curve.attack != WORST else ():
                place = (system_text(curve.system, panel.runs[curve.system]), curve.attack, eps)
                found.setdefault(place, {})[metric] = summary
    return found


def _cell(summary: Summary | None, suffix: str, *, percent: bool) -> str:
    if summary is None:
        return MISSING
    text = cell_text(summary, percent=percent)
    return f'{text}, n = {summary.n}' if suffix in ('/changed', '/unchanged') else text
