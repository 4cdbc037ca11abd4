"""One page that holds a whole evaluation and needs nothing beside itself.

Contents: `build_report`.

The page opens from disk without a network: styles and pictures are inside it, there is no script,
and every text that comes from data is escaped. It prints, and follows a dark screen.

Example:

    page = build_report(read_rows(workdir / 'results.jsonl'), pictures,
                        title='PneumoniaMNIST', commands=['python -m experiments.train ...'])
    (workdir / 'report.html').write_text(page, encoding='utf-8')
"""
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from medrobust_jax.report.elements import image
from medrobust_jax.report.explanations import Explanation, explanation_figure
from medrobust_jax.report.figures import Picture, curve_figure, picture_figure, to_png, to_svg
from medrobust_jax.report.foreign import INTRODUCTION, ForeignScene, foreign_figure, foreign_tables
from medrobust_jax.report.glossary import glossary_of
from medrobust_jax.report.margins import Margins, margin_figure
from medrobust_jax.report.movement import explanation_tables
from medrobust_jax.report.naming import OUT_OF_DISTRIBUTION, is_explanation, kind_of, split_structure
from medrobust_jax.report.overlays import Scene, scene_figure
from medrobust_jax.report.risk import risk_section
from medrobust_jax.report.structures import structure_tables
from medrobust_jax.report.summary import (
    CLEAN,
    PER_IMAGE,
    Panel,
    ResultRow,
    agree,
    eps_text,
    headline_panels,
    main_first,
    run_of,
    summarize,
    system_names,
)
from medrobust_jax.report.tables import Table, cell_text, clean_table, robustness_table, to_html

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5b6670; --line: #d8dde2; --paper: #fff;
  --shade: #f4f6f8; --accent: #0b5cad; --warn-ink: #7a3b00; --warn: #fff4e5; --warn-line: #f0b46a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa6b1; --line: #39424b;
  --paper: #14181c; --shade: #1d2329; --accent: #7ab8f5; --warn-ink: #ffd9a8; --warn: #3a2a14;
  --warn-line: #8a5a1c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2rem 1.5rem 4rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; }
.lead, figcaption, .footnotes, caption { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0 0; font-size: .9rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.table { overflow-x: auto; margin: 1rem 0 1.4rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; font-size: .86rem; }
th, td { padding: .28rem .75rem .28rem 0; text-align: left; vertical-align: top; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); color: var(--soft); font-weight: 600; }
tbody th { font-weight: 600; } tbody tr.first th, tbody tr.first td { border-top: 1px solid var(--line); }
tr.worst td { font-weight: 600; background: var(--shade); }
.wrap td { white-space: normal; overflow-wrap: break-word; min-width: 3rem; }
.footnotes { margin: .4rem 0 0; padding-left: 1.4rem; font-size: .82rem; }
figure { margin: 1.2rem 0 1.8rem; } figcaption { font-size: .88rem; margin-top: .3rem; max-width: 46rem; }
figure img { display: block; width: auto; max-width: min(100%, 44rem);
  height: auto; background: #fff; border-radius: 4px; padding: .4rem; }
pre { background: var(--shade); border: 1px solid var(--line); border-radius: 4px; padding: .8rem 1rem;
  overflow-x: auto; font-size: .84rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.warnings { background: var(--warn); color: var(--warn-ink); border-left: 4px solid var(--warn-line);
  padding: .6rem 1rem .6rem 2rem; max-width: none; border-radius: 0 4px 4px 0; }
dt { font-weight: 600; margin-top: .7rem; } dd { margin: 0; max-width: 46rem; }
@media print { @page { margin: 15mm; } :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb;
    --paper: #fff; --shade: #f2f2f2; --warn: #fff; --warn-ink: #000; --warn-line: #888; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; }
  table { font-size: 7.5pt; } th, td { padding-right: .45rem; } .table { overflow: visible; }
  figure, tr, dd { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""

_ON_EXPLANATIONS = (
    'Maps of what in an image the answer depends on, for the image as it is and after the attack. Where noise of '
    'the same size leaves a map in place and the attack does not, the explanation is as easily misled as the '
    'answer. Rank correlation and overlap are 1 and 100 % where nothing moved; a shift is 0.')
_ON_MAPS = (
    'Grad-CAM: the brighter a region, the more it speaks for the class named below. Integrated gradients: orange '
    'pixels speak for the class, purple ones against it. Each map is scaled to its own largest value, so that '
    'colors compare within a map and not between maps.')


def build_report(rows: Iterable[ResultRow], pictures: Sequence[Picture | Scene] = (), *, title: str,
                 commands: Sequence[str] = (), notes: Sequence[str] = (), margins: Sequence[Margins] = (),
                 systems: Sequence[ResultRow] = (), foreign: Sequence[ForeignScene] = (),
                 explanations: Sequence[Explanation] = ()) -> str:
    """The page, from whatever results there are.

    Args:
      rows: of any number of data sets, systems, seeds, attacks and metrics, complete or not.
      pictures: images before and after an attack.
      title: the page's heading.
      commands: what to type to get these results again.
      notes: remarks of whoever ran the evaluation, a sentence each; shown at the top.
      margins: of runs that were trained with one radius per example.
      systems: rows about models with a detector of attacked images.
      foreign: images of another kind, before and after an attack.
      explanations: maps of images before and after an attack.

    Returns:
      A self-contained HTML document.

    Raises:
      ValueError: no rows, or a picture whose images break their contract.
    """
    everything = list(rows)
    if not everything:
        raise ValueError('there are no results to report: run the evaluation first')
    rows = [row for row in everything if not is_explanation(row.metric)] or everything
    panels = {metric: [p for p in summarize(rows, metric=metric) if p.eps] for metric in main_first(rows)}
    heads = [panel for panel in headline_panels(rows) if panel.eps]
    sections = [('evaluated', 'What was evaluated', _evaluated(rows)),
                ('results', 'Results', _results(rows, panels, heads)),
                ('curves', 'Quality over eps', _curves(heads)),
                ('risk', 'Risk of the whole system', risk_section(systems)),
                ('structures', 'By structure', _structures(rows)),
                ('pictures', 'Pictures', ''.join(map(_picture, pictures))),
                ('foreign', 'Out of distribution', _foreign(rows, foreign)),
                ('explanations', 'Explanations', _explanations(everything, explanations)),
                ('margins', 'Margins of training', ''.join(map(_margins, margins))),
                ('checks', 'Sanity checks and warnings', _checks(everything)),
                ('reproduce', 'How to reproduce', _reproduce(rows, commands)),
                ('glossary', 'Glossary', _glossary([*everything, *systems], margins))]
    sections = [section for section in sections if section[2]]
    links = ''.join(f'<a href="#{key}">{escape(name)}</a>' for key, name, _ in sections)
    body = ''.join(f'<section><h2 id="{key}">{escape(name)}</h2>{content}</section>'
                   for key, name, content in sections)
    remarks = ''.join(f'<p>{escape(note)}</p>' for note in notes)
    lead = ''.join(f'<li>{escape(sentence)}</li>' for sentence in _in_short(heads))
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{escape(title)}</title><style>{_STYLE}</style></head><body>'
            f'<header><h1>{escape(title)}</h1><p class="lead">{escape(_lead(rows))}</p>'
            f'{remarks}{f"<ul>{lead}</ul>" if lead else ""}<nav>{links}</nav></header>'
            f'<main>{body}</main></body></html>\n')


def _lead(rows: list[ResultRow]) -> str:
    names = system_names(rows)
    systems = len({(row.dataset, names[run_of(row)]) for row in rows})
    attacks = len({row.attack for row in rows if row.attack not in (CLEAN, *PER_IMAGE)
                   and row.metric not in OUT_OF_DISTRIBUTION})
    datasets = len({row.dataset for row in rows})
    return (f'Adversarial robustness: {_count(systems, "system")} under {_count(attacks, "attack")} '
            f'on {_count(datasets, "data set")}.')


def _in_short(heads: Sequence[Panel]) -> list[str]:
    """A sentence per data set, norm and system: quality on clean images, and what is left at the largest eps."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for panel in heads:
        metric, largest = panel.shown, panel.eps[-1]
        for system in panel.systems:
            curves = [curve for curve in panel.curves if curve.system == system]
            clean = next((c.points.get(0.0) for c in curves if c.attack == CLEAN), None)
            # Worst comes before the single attacks; a single attack stands for itself.
            worst = next((c for c in curves if c.attack != CLEAN and largest in c.points), None)
            if clean and worst:
                unit = ' in %' if metric.percent else ''
                before, after = (cell_text(s, percent=metric.percent) for s in (clean, worst.points[largest]))
                found.setdefault((panel.dataset, panel.split, panel.norm, system), []).append(
                    f'{metric.label}{unit} {before} on clean images, {after} at eps '
                    f'{eps_text(largest, panel.norm)} ({worst.attack})')
    several = {place[:2] for place in found if len({other[2] for other in found if other[:2] == place[:2]}) > 1}
    return [f'{place[0]}, {place[3]}{f" ({place[2]})" if place[:2] in several else ""}: {"; ".join(parts)}.'
            for place, parts in found.items()]


def _count(number: int, what: str) -> str:
    return f'{number or "no"} {what}{"" if number == 1 else "s"}'


def _evaluated(rows: list[ResultRow]) -> str:
    """Systems and attacks, each as a table."""
    names = system_names(rows)
    systems, attacks = {}, {}
    for row in rows:
        systems.setdefault((row.dataset, row.split, names[run_of(row)], row.model), []).append(row)
        if row.attack not in (CLEAN, *PER_IMAGE):
            attacks.setdefault((row.attack, row.norm, _options(row)), []).append(row)
    lines = [[dataset, split, system, model, _listed(row.seed for row in own), _listed(row.n for row in own),
              _short(own, 'checkpoint_fingerprint'), _short(own, 'dataset_fingerprint')]
             for (dataset, split, system, model), own in systems.items()]
    of_systems = Table('Systems and data', ['data', 'split', 'defense', 'model', 'seeds', 'images', 'checkpoint',
                                            'data fingerprint'], lines, [])
    lines = [[attack, norm, _listed(eps_text(row.eps, norm) for row in sorted(own, key=lambda row: row.eps)),
              options or 'defaults', _passes(row.forward_passes for row in own),
              _passes(row.backward_passes for row in own)] for (attack, norm, options), own in attacks.items()]
    of_attacks = Table('Attacks; passes through the model per image',
                       ['attack', 'norm', 'eps', 'settings', 'forward passes', 'backward passes'], lines, [])
    tables = [of_systems, *([of_attacks] if lines else [])]
    return ''.join(f'<div class="wrap">{to_html(table)}</div>' for table in tables)


def _software(rows: list[ResultRow]) -> list[Table]:
    """Versions, commit and device; several values where rows differ, so that it is seen."""
    versions = [row.provenance.get('versions') or {} for row in rows]
    names = list(dict.fromkeys(name for own in versions for name in own))
    lines = [[name, _listed(own[name] for own in versions if name in own)] for name in names]
    for name in ('commit', 'device', 'block_width'):
        values = [row.provenance[name] for row in rows if row.provenance.get(name)]
        if values:
            lines.append([name.replace('_', ' '), _listed(values)])
    times = sorted(str(row.provenance['time']) for row in rows if row.provenance.get('time'))
    if times:
        lines.append(['time', times[0] if times[0] == times[-1] else f'{times[0]} to {times[-1]}'])
    return [Table('Software and machine', ['what', 'value'], lines, [])] if lines else []


def _results(rows: list[ResultRow], panels: dict[str, list[Panel]], heads: Sequence[Panel]) -> str:
    """First the metrics that lead, under attack, then clean quality in full, then the other metrics."""
    parts = [to_html(robustness_table(panel)) for panel in heads]
    by_kind: dict[Any, list[ResultRow]] = {}
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset]
        by_kind.setdefault(kind_of(own), []).extend(own)
    tables = [table for own in by_kind.values() if (table := clean_table(own))]
    parts += ['<h3>Clean images, all measures</h3>', *map(to_html, tables)] if tables else []
    shown = {(panel.dataset, panel.metric) for panel in heads}
    main = next(iter(panels), '')
    for metric, own in panels.items():
        left = [panel for panel in own if (panel.dataset, metric) not in shown]
        if left:
            parts.append(f'<h3>Under attack: {escape(left[0].shown.label)}</h3>')
        if left and agree(rows, main, metric):
            parts.append(f'<p>Equal to {escape(panels[main][0].shown.label)} everywhere; not repeated.</p>')
            continue
        parts += [to_html(robustness_table(panel)) for panel in left]
    return ''.join(parts)


def _structures(rows: list[ResultRow]) -> str:
    return ''.join(to_html(table) for table in structure_tables(rows))


def _curves(heads: Sequence[Panel]) -> str:
    """One figure per panel that leads."""
    figures = []
    for panel in heads:
        several = any(count > 1 for count in panel.runs.values())
        band = 'the lowest and highest run where there are several, else 95 % intervals' if several \
            else '95 % intervals'
        caption = (f'{panel.dataset} {panel.split}: {panel.shown.label} as the attack may change the image more. '
                   f'Bands are {band}.')
        figures.append(image(to_svg(curve_figure(panel)), 'svg+xml', caption))
    return ''.join(figures)


def _picture(picture: Picture | Scene) -> str:
    figure = picture_figure(picture) if isinstance(picture, Picture) else scene_figure(picture)
    return image(to_png(figure), 'png', picture.caption)


def _foreign(rows: list[ResultRow], scenes: Sequence[ForeignScene]) -> str:
    content = [*map(to_html, foreign_tables(rows)),
               *(image(to_png(foreign_figure(scene)), 'png', scene.caption) for scene in scenes)]
    return ''.join([f'<p>{escape(INTRODUCTION)}</p>', *content]) if content else ''


def _explanations(rows: list[ResultRow], explanations: Sequence[Explanation]) -> str:
    """The measures, then the pictures."""
    tables = ''.join(f'<div class="wrap">{to_html(table)}</div>' for table in explanation_tables(rows))
    if not tables and not explanations:
        return ''
    figures = ''.join(image(to_png(explanation_figure(each)), 'png', each.caption) for each in explanations)
    return f'<p>{_ON_EXPLANATIONS}</p>{tables}{f"<p>{_ON_MAPS}</p>" if figures else ""}{figures}'


def _margins(margins: Margins) -> str:
    return image(to_svg(margin_figure(margins)), 'svg+xml', margins.caption)


def _checks(rows: list[ResultRow]) -> str:
    """Each warning once per system, with the attacks and eps it came up for."""
    names = system_names(rows)
    found: dict[tuple[str, str, str], dict[tuple[str, str], set[float]]] = {}
    for row in rows:
        for warning in row.warnings:
            places = found.setdefault((row.dataset, names[run_of(row)], warning), {})
            places.setdefault((row.attack, row.norm), set()).add(row.eps)
    if not found:
        return '<p>No result carries a warning.</p>'
    items = []
    for (dataset, system, warning), places in found.items():
        where = '; '.join(_place(attack, norm, eps) for (attack, norm), eps in places.items())
        items.append(f'<li><strong>{escape(f"{dataset}, {system}")}</strong>: {escape(warning)} '
                     f'<small>({escape(where)})</small></li>')
    return ('<p>A warning means that a number may say more about the attack than about the model: a robust '
            f'score with a warning should not be quoted before it is explained.</p>'
            f'<ul class="warnings">{"".join(items)}</ul>')


def _place(attack: str, norm: str, eps: set[float]) -> str:
    radii = _listed(eps_text(value, norm) for value in sorted(eps) if value > 0)
    return f'{attack}, eps {radii}' if radii else attack


def _reproduce(rows: list[ResultRow], commands: Sequence[str]) -> str:
    text = escape('\n'.join(commands))
    configs = _short(rows, 'config_fingerprint')
    parts = [f'<pre>{text}</pre>' if commands else '']
    if configs:
        parts.append(f'<p>Config fingerprint: {escape(configs)}. Each number with its evidence is a line of '
                     '<code>results.jsonl</code>; the verdict on each image is in <code>verdicts/</code>.</p>')
    parts += [f'<div class="wrap">{to_html(table)}</div>' for table in _software(rows)]
    return ''.join(parts)


def _glossary(rows: list[ResultRow], margins: Sequence[Margins]) -> str:
    """The terms that every page needs, and those of the metrics that this one holds."""
    metrics = {split_structure(row.metric)[0] for row in rows} | ({'margin'} if margins else set())
    entries = ''.join(f'<dt>{escape(term)}</dt><dd>{escape(text)}</dd>' for term, text in glossary_of(metrics))
    return f'<dl>{entries}</dl>'


def _options(row: ResultRow) -> str:
    return ', '.join(f'{name} {value}' for name, value in sorted(row.attack_options.items()))


def _listed(values: Iterable[Any]) -> str:
    return ', '.join(map(str, dict.fromkeys(values)))


def _short(rows: list[ResultRow], name: str) -> str:
    """The distinct fingerprints, 12 characters each."""
    return _listed(str(row.provenance[name])[:12] for row in rows if row.provenance.get(name))


def _passes(counts: Iterable[float]) -> str:
    known = [count for count in counts if not math.isnan(count)]
    if not known:
        return 'not counted'
    low, high = min(known), max(known)
    return f'{low:.4g}' if low == high else f'{low:.4g} to {high:.4g}'
