"""Tables of results for a terminal, for Markdown and for a page.

Contents: `Table`, `robustness_table`, `clean_table`, `to_text`, `to_markdown`, `to_html`; for other tables
`cell_text`, `system_text`, `brackets`, `NORM_NAMES`.

Example:

    for panel in summarize(rows, metric='accuracy'):
        table = robustness_table(panel)
        print(to_text(table))
    page = to_html(clean_table(rows))
"""
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from medrobust_jax.metrics.curves import area_under_curve
from medrobust_jax.report.naming import metric_of
from medrobust_jax.report.summary import (
    CLEAN,
    WORST,
    WORST_PER_IMAGE,
    Curve,
    Panel,
    ResultRow,
    Summary,
    agree,
    eps_text,
    main_first,
    summarize,
)

MISSING = '–'  # noqa: RUF001 - an en dash, the printers' sign for "no value"
_INTERVALS = {'wilson': 'Wilson', 'wilson-patients': 'Wilson over patients',
              'newcombe': 'Newcombe', 'newcombe-patients': 'Newcombe over patients',
              'bootstrap': 'bootstrap', 'bootstrap-patients': 'bootstrap over patients'}
NORM_NAMES = {'linf': 'L-infinity', 'l2': 'L2', 'l1': 'L1'}


class Table(NamedTuple):
    """A table before it is drawn.

    Attributes:
      caption: what the numbers are.
      columns: the headings.
      lines: rows of cells, as many as columns; an empty first cell repeats the one above.
      footnotes: what the numbers in the last column stand for, from 1.
      emphasized: which lines to stress.
      remarks: what to know of the table as a whole, below it.
    """

    caption: str
    columns: list[str]
    lines: list[list[str]]
    footnotes: list[str]
    emphasized: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = ()


def cell_text(summary: Summary | None, *, percent: bool, compact: bool = False) -> str:
    """One run: 'value [low, high]', its 95 % interval; several: 'mean (lowest to highest)'.

    Args:
      summary: the cell, or None where there is no result.
      percent: whether to show it times 100.
      compact: whether to round percentages' bounds outward to whole ones.

    Returns:
      The text.
    """
    if summary is None:
        return MISSING
    if math.isnan(summary.value):
        return 'undefined'
    value, low, high = (f'{100 * x:.1f}' if percent else f'{x:.2f}' for x in summary[:3])
    if math.isnan(summary.low):
        return value
    if compact and percent:
        # 1e-9: 100 times .57 is 57 and a bit, which must not become 58.
        low, high = str(math.floor(100 * summary.low + 1e-9)), str(math.ceil(100 * summary.high - 1e-9))
    return f'{value} ({low} to {high})' if summary.runs > 1 else f'{value} [{low}, {high}]'


def robustness_table(panel: Panel, *, compact: bool = False) -> Table:
    """Systems and attacks down, eps across.

    Args:
      panel: from `summarize`.
      compact: whether to round percentages' bounds outward to whole ones, for narrow terminals.

    Returns:
      The table: clean quality on a system's first line, then the attack that did most harm, then
      each attack; 'area' is the mean height of the curve from the clean images to the largest eps.
    """
    percent = panel.shown.percent
    notes = _Notes(panel.norm)
    lines, emphasized = [], set()
    for system in panel.systems:
        of_system = {curve.attack: curve for curve in panel.curves if curve.system == system}
        clean = of_system.pop(CLEAN, None)
        first = [system_text(system, panel.runs[system]),
                 cell_text(clean.points.get(0.0) if clean else None, percent=percent, compact=compact)]
        for attack, curve in (of_system or {MISSING: None}).items():
            cells = [cell_text(curve.points.get(eps) if curve else None, percent=percent, compact=compact)
                     for eps in panel.eps]
            if panel.eps:
                cells.append(_area(clean, curve, panel))
            marks = notes.marks([clean if first[0] else None, curve])
            if attack in (WORST, WORST_PER_IMAGE):
                emphasized.add(len(lines))
            lines.append([first[0], attack, first[1], *cells, marks])
            first = ['', '']
    radii = [f'eps {eps_text(eps, panel.norm)}' for eps in panel.eps]
    columns = ['defense', 'attack', CLEAN, *radii, *(['area'] if radii else []), 'notes']
    table = Table(_caption(panel), columns, lines, notes.texts, frozenset(emphasized))
    return _without_empty_notes(table)


def _area(clean: Curve | None, curve: Curve | None, panel: Panel) -> str:
    """The normalized area under a curve that has all its points, else the sign for no value."""
    points = {**(clean.points if clean else {}), **(curve.points if curve else {})}
    if not {0.0, *panel.eps} <= set(points):
        return MISSING
    area = area_under_curve(list(points), [summary.value for summary in points.values()])
    if math.isnan(area):
        return MISSING
    return f'{100 * area:.1f}' if panel.shown.percent else f'{area:.2f}'


def clean_table(rows: Iterable[ResultRow]) -> Table | None:
    """Every metric on clean images but those of single structures: data sets and systems down, metrics across.

    Args:
      rows: result rows.

    Returns:
      The table, or None without clean results.
    """
    rows = [row for row in rows if row.attack == CLEAN]
    metrics = main_first(rows)
    if agree(rows, 'accuracy', 'robust_accuracy'):
        metrics.remove('robust_accuracy')  # without an attack the two are one number
    panels = {metric: summarize(rows, metric=metric) for metric in metrics}
    shown = {metric: own[0].shown if len({panel.kind for panel in own}) == 1 else metric_of(metric)
             for metric, own in panels.items()}
    notes, cells, names = _Notes(''), {}, {}
    for metric, own in panels.items():
        for panel in own:
            for curve in panel.curves:
                key = (f'{panel.dataset} {panel.split}', curve.system)
                names[key] = system_text(curve.system, panel.runs[curve.system])
                cells[key, metric] = cell_text(curve.points.get(0.0), percent=shown[metric].percent)
                named = [(f'{shown[metric].label}: {text}', eps) for text, eps in curve.notes]
                cells[key, 'notes'] = ', '.join(filter(None, [
                    cells.get((key, 'notes'), ''), notes.marks([curve._replace(notes=named)])]))
    if not cells:
        return None
    columns = ['data', 'defense', *(f'{shown[m].label}{", %" if shown[m].percent else ""}' for m in metrics),
               'notes']
    lines = [[*((key[0], name)), *(cells.get((key, m), MISSING) for m in metrics), cells[key, 'notes']]
             for key, name in names.items()]
    caption = f'Clean images; {brackets(panel for own in panels.values() for panel in own)}'
    return _without_empty_notes(Table(caption, columns, lines, notes.texts))


def to_text(table: Table) -> str:
    """The table in aligned columns for a terminal."""
    grid = [table.columns, *table.lines]
    widths = [max(len(line[i]) for line in grid) for i in range(len(table.columns))]

    def draw(line: Sequence[str]) -> str:
        return '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()

    body = [draw(line) for line in table.lines]
    rule = '-' * max(map(len, [draw(table.columns), *body]))
    footnotes = [f'[{number}] {text}' for number, text in enumerate(table.footnotes, 1)]
    return '\n'.join([table.caption, draw(table.columns), rule, *body, *footnotes, *table.remarks]) + '\n'


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown."""
    def draw(line: Sequence[str]) -> str:
        return '| ' + ' | '.join(cell.replace('|', r'\|') for cell in line) + ' |'

    lines = [[f'**{cell}**' if cell and i in table.emphasized else cell for cell in line]
             for i, line in enumerate(table.lines)]
    footnotes = [f'{number}. {text}' for number, text in enumerate(table.footnotes, 1)]
    parts = [table.caption, '', draw(table.columns), draw(['---'] * len(table.columns)),
             *map(draw, lines), *([''] if footnotes else []), *footnotes,
             *(line for remark in table.remarks for line in ('', remark))]
    return '\n'.join(parts) + '\n'


def to_html(table: Table) -> str:
    """The table as HTML, every text escaped."""
    heads = ''.join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = []
    for i, line in enumerate(table.lines):
        kind = ' '.join(filter(None, ['first' if line[0] else '', 'worst' if i in table.emphasized else '']))
        cells = ''.join(f'<th scope="row">{escape(cell)}</th>' if column == 0 else f'<td>{escape(cell)}</td>'
                        for column, cell in enumerate(line))
        body.append(f'<tr class="{kind}">{cells}</tr>')
    notes = ''.join(f'<li>{escape(text)}</li>' for text in table.footnotes)
    footnotes = f'<ol class="footnotes">{notes}</ol>' if notes else ''
    remarks = ''.join(f'<p class="footnotes">{escape(text)}</p>' for text in table.remarks)
    return (f'<div class="table"><table><caption>{escape(table.caption)}</caption><thead><tr>{heads}</tr>'
            f'</thead><tbody>{"".join(body)}</tbody></table>{footnotes}{remarks}</div>')


class _Notes:
    """Numbers remarks in order of appearance; equal remarks share a number."""

    def __init__(self, norm: str) -> None:
        self.norm, self.texts = norm, []

    def marks(self, curves: Iterable[Curve | None]) -> str:
        """The numbers of a line's remarks, e.g. '1, 3'."""
        numbers = []
        for curve in curves:
            remarks = curve.notes if curve else []
            for text in dict.fromkeys(text for text, _ in remarks):
                places = [eps_text(eps, self.norm) for other, eps in remarks if other == text and eps > 0]
                full = f'{text} (eps {", ".join(places)})' if places else text
                if full not in self.texts:
                    self.texts.append(full)
                numbers.append(self.texts.index(full) + 1)
        return ', '.join(map(str, sorted(set(numbers))))


def system_text(system: str, runs: int) -> str:
    """A system's name, with the number of its runs where there are several."""
    return f'{system} ({runs} runs)' if runs > 1 else system


def _caption(panel: Panel) -> str:
    metric = panel.shown
    parts = [f'{panel.dataset} {panel.split}: {metric.label}{" in %" if metric.percent else ""}',
             brackets([panel])]
    counts = sorted({summary.n for curve in panel.curves for summary in curve.points.values()})
    parts.append('n = ' + (str(counts[0]) if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'))
    if panel.norm:
        parts.insert(1, f'{NORM_NAMES.get(panel.norm, panel.norm)} attacks')
    return '; '.join(parts)


def brackets(panels: Iterable[Panel]) -> str:
    """What brackets and parentheses mean in the cells of these panels."""
    summaries = [summary for panel in panels for curve in panel.curves for summary in curve.points.values()]
    methods = {summary.method.split(' ')[0] for summary in summaries if summary.runs == 1}
    named = ' or '.join(_INTERVALS[method] for method in sorted(methods) if method in _INTERVALS)
    parts = [f'[95 % interval: {named}]' if named else '[95 % interval]'] if methods else []
    several = any(summary.runs > 1 for summary in summaries)
    return ' and '.join(parts + (['(lowest to highest run)'] if several else []))


def _without_empty_notes(table: Table) -> Table:
    if table.footnotes:
        return table
    return table._replace(columns=table.columns[:-1], lines=[line[:-1] for line in table.lines])
