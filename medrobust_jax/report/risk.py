"""The risk of a model with a detector, for readers who decide about patients rather than about networks.

A detector's AUROC is shown only beside that under an attack which knows the detector: without it, the number says
how well the detector finds attackers who do not know that it exists.

Contents: `RISK`, `risk_section`, `risk_tables`; their parts `named_systems`, `risk_panels`, `risk_sentences`,
`cost_table`, `detection_table`, `risk_figures`.

Example:

    page += risk_section(read_rows(workdir / 'system.jsonl'))
"""
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from matplotlib.figure import Figure

from medrobust_jax.report.elements import image
from medrobust_jax.report.figures import curve_figure, to_svg
from medrobust_jax.report.met_attacks import unequal_attacks
from medrobust_jax.report.summary import (
    CLEAN,
    WORST_PER_IMAGE,
    Panel,
    ResultRow,
    Summary,
    eps_text,
    run_of,
    summarize,
    summary_of,
    system_names,
)
from medrobust_jax.report.tables import Table, cell_text, robustness_table, system_text, to_html

RISK = 'risk_system'
AWARE, UNAWARE = 'aware', 'worst_unaware'
_COST = 'risk_cost_'
_WHAT_RISK_IS = (
    'Risk here is the share of images for which a wrong answer is given and nobody is warned: the classifier is '
    'wrong and the detector lets the image pass. An image that the detector rejects goes to a human. "worst per '
    'image" is the risk under the attack that does most harm to each image, among them one that knows the '
    'detector.')
_CAPTION = ('risk as the attack may change the image more, with each detector and with none: under the worst '
            'attack per image, and under the worst of those who do not know the detector.')
_SEE_BELOW = ' Not all systems met the same attacks: see below the tables.'
_TITLES = {UNAWARE: 'worst without knowing the detector'}
_SIGN = '+'  # a system is called 'defense+detector'


class Named(NamedTuple):
    """What a system of a table is: the model's name without a detector, and the detector's, '' for none."""

    model: str
    detector: str


def named_systems(rows: Sequence[ResultRow]) -> dict[str, Named]:
    """By the name that tables give a system: which model and which detector it is."""
    names, found = system_names(rows), {}
    for row in rows:
        defense, _, detector = row.defense.partition(_SIGN)
        name = names[run_of(row)]
        found[name] = Named(name.replace(row.defense, defense, 1), detector)
    return found


def risk_section(rows: Sequence[ResultRow]) -> str:
    """The report's page on systems with a detector, as HTML; empty without such rows."""
    rows, parts = list(rows), []
    for panel in risk_panels(rows):
        named = named_systems(rows)
        caption = _CAPTION + (_SEE_BELOW if unequal_attacks(rows, panel) else '')
        sentences = ''.join(f'<li>{escape(each)}</li>' for each in risk_sentences(panel, named))
        parts.append(f'<p>{escape(_WHAT_RISK_IS)}</p>' + (f'<ul>{sentences}</ul>' if sentences else ''))
        parts += [image(to_svg(figure), 'svg+xml', f'{panel.dataset}, {base}: {caption}')
                  for base, figure in risk_figures(panel, named)]
        parts += map(to_html, _tables(rows, panel))
    return ''.join(parts)


def risk_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Per data set: what systems cost, their risk under every attack, and how attacked images were told apart."""
    return [table for panel in risk_panels(rows) for table in _tables(rows, panel)]


def _tables(rows: Sequence[ResultRow], panel: Panel) -> list[Table]:
    found, remarks = detection_table(rows, panel), unequal_attacks(rows, panel)
    risks = [table._replace(remarks=remarks) for table in (cost_table(rows, panel), robustness_table(panel))]
    return [*risks, *([found] if found else [])]


def risk_panels(rows: Iterable[ResultRow]) -> list[Panel]:
    """One panel per data set and norm: the share of images whose wrong answer reaches the clinic, over eps."""
    return [panel for panel in summarize(rows, metric=RISK) if panel.eps]


def risk_sentences(panel: Panel, named: Mapping[str, Named]) -> list[str]:
    """For each model, what the first of its detectors changes at the largest eps, in whole images of a hundred.

    The first is the one that the evaluation names first: choosing the best by these very images would flatter it.
    """
    worst, unaware = _curves(panel, WORST_PER_IMAGE), _curves(panel, UNAWARE)
    eps, found = panel.eps[-1], []
    for model in dict.fromkeys(named[system].model for system in worst):
        own = [system for system in worst if named[system].model == model and eps in worst[system]]
        alone = next((worst[system][eps] for system in own if not named[system].detector), None)
        guarded = next((system for system in own if named[system].detector), None)
        if alone is None or guarded is None:
            continue
        blind = unaware.get(guarded, {}).get(eps)
        found.append(
            f'{panel.dataset}, {model}: of 100 images that somebody changes by at most '
            f'{eps_text(eps, panel.norm)}, {_hundred(alone)} wrong answers reach the clinic where no detector is '
            f'used. With the detector {named[guarded].detector} '
            + (f'{_hundred(blind)} do if the attacker does not know it, and ' if blind else '')
            + f'{_hundred(worst[guarded][eps])} if the attacker does.')
    return found


def cost_table(rows: Sequence[ResultRow], panel: Panel) -> Table:
    """What a system costs when nobody attacks, and its risk at the middle eps with needless referrals priced."""
    names, eps = system_names(rows), panel.eps[(len(panel.eps) - 1) // 2]
    rows = [row for row in rows if (row.dataset, row.split) == (panel.dataset, panel.split)]
    weights = sorted({float(row.metric.removeprefix(_COST)) for row in rows if row.metric.startswith(_COST)})
    lines = []
    for system in panel.systems:
        own = [row for row in rows if names[run_of(row)] == system]
        cells = [_cell(own, CLEAN, 0.0, 'false_alarms'), _cell(own, CLEAN, 0.0, 'risk_classifier'),
                 _cell(own, CLEAN, 0.0, RISK), _cell(own, 'worst_case', eps, RISK)]
        cells += [_cell(own, 'worst_case', eps, f'{_COST}{weight:g}') for weight in weights]
        lines.append([system_text(system, panel.runs[system]), *cells])
    columns = ['system', 'clean images rejected', 'wrong on clean images', 'of these accepted',
               f'risk at eps {eps_text(eps, panel.norm)}',
               *(f'risk + {weight:g} per referral' for weight in weights)]
    caption = (f'{panel.dataset} {panel.split}: what a system costs, in %. The risk is that under the worst '
               'attack; the last columns add a price for each clean image that is rejected without need')
    return Table(caption, columns, lines, [])


def detection_table(rows: Sequence[ResultRow], panel: Panel) -> Table | None:
    """AUROC of each detector on images that fool the classifier, attacker by attacker, at the middle eps.

    Systems that no aware attack was run on are left out; None where no system is left.
    """
    names, named, eps = system_names(rows), named_systems(rows), panel.eps[(len(panel.eps) - 1) // 2]
    rows = [row for row in rows if (row.dataset, row.split) == (panel.dataset, panel.split)]
    measured = [row for row in rows if row.metric == 'detection_auroc' and row.eps == eps]
    attacks = [name for name in dict.fromkeys(row.attack for row in measured) if name != AWARE]
    lines = []
    for system in panel.systems:
        own = [row for row in rows if names[run_of(row)] == system and row.eps == eps]
        # A detector that the aware attack always defeats or never needs to has rows of the attack all the same.
        if named[system].detector and any(row.attack == AWARE for row in own):
            lines.append([system_text(system, panel.runs[system]),
                          *(_cell(own, name, eps, 'detection_auroc') for name in attacks),
                          _cell(own, AWARE, eps, 'detection_auroc'), _cell(own, AWARE, eps, 'rejected')])
    if not lines:
        return None
    caption = (f'{panel.dataset} {panel.split}: AUROC in % of telling images that fool the classifier from '
               f'clean ones, eps {eps_text(eps, panel.norm)}; 50 % is guessing. The last two columns are under an '
               'attacker who knows the detector')
    return Table(caption, ['system', *attacks, 'aware', 'aware: rejected'], lines, [])


def risk_figures(panel: Panel, named: Mapping[str, Named]) -> list[tuple[str, Figure]]:
    """One figure per model: risk over eps, a line per detector, called by its name; with the model's name."""
    found = []
    for model in dict.fromkeys(named[system].model for system in panel.systems):
        own = tuple(system for system in panel.systems if named[system].model == model)
        kept = [curve for curve in panel.curves if curve.system in own
                and curve.attack in (CLEAN, WORST_PER_IMAGE, UNAWARE)]
        if any(curve.attack != CLEAN for curve in kept):
            called = {system: named[system].detector or 'no detector' for system in own}
            curves = [curve._replace(system=called[curve.system], attack=_TITLES.get(curve.attack, curve.attack))
                      for curve in kept]
            found.append((model, curve_figure(panel._replace(
                systems=tuple(called.values()), curves=curves,
                runs={called[system]: panel.runs[system] for system in own}))))
    return found


def _curves(panel: Panel, attack: str) -> dict[str, dict[float, Summary]]:
    return {curve.system: curve.points for curve in panel.curves if curve.attack == attack}


def _cell(rows: Sequence[ResultRow], attack: str, eps: float, metric: str) -> str:
    """One cell over all seeds."""
    here = [row for row in rows if (row.attack, row.eps, row.metric) == (attack, eps, metric)]
    return cell_text(summary_of(here) if here else None, percent=True)


def _hundred(summary: Summary) -> str:
    return f'{100 * summary.value:.0f}'
