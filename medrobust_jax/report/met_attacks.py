"""Whether the systems of a table met the same attacks: one that met fewer or weaker ones looks safer than it is.

Contents: `unequal_attacks`.

Example:

    for remark in unequal_attacks(rows, panel):
        print(remark)  # Not attacked by transfer: "natural+lid".
"""
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medrobust_jax.report.summary import CLEAN, PER_IMAGE, Panel, ResultRow, eps_text, run_of, system_names

_WARNING = ('The systems above did not all meet the same attacks. One that met fewer or weaker attacks looks '
            'safer than it is: compare only systems that are not told apart here.')
_AWARE, _UNAWARE, _TRANSFER = 'aware', 'worst_unaware', 'transfer'
_SYSTEM = {'false_alarm_rate': 'share of clean images that the detector may reject',
           'aware_steps': 'steps of the aware attack', 'aware_rounds': 'rounds of the aware attack',
           'max_fit': 'images that the detector is fitted on, at most'}
_OF_DETECTORS = ('false_alarm_rate', 'max_fit')


def unequal_attacks(rows: Sequence[ResultRow], panel: Panel) -> tuple[str, ...]:
    """Remarks for below a table, which name the systems that met other attacks than most; none where all agree.

    Which model a transfer attack came from may differ, since a model is no surrogate of its own; whether there was
    one may not. Settings are compared where rows hold them.

    Args:
      rows: of systems, see `report.risk`.
      panel: the table's systems.
    """
    names = system_names(rows)
    of_system: dict[str, list[ResultRow]] = {system: [] for system in panel.systems}
    for row in rows:
        here = (row.dataset, row.split, row.metric) == (panel.dataset, panel.split, panel.metric)
        if here and row.norm in ('', panel.norm):
            of_system[names[run_of(row)]].append(row)
    met = {system: _attacks(own) for system, own in of_system.items()}
    remarks = []
    for attack in dict.fromkeys(attack for own in met.values() for attack in own):
        if lacking := [system for system, own in met.items() if attack not in own]:
            remarks.append(f'Not attacked by {attack}: {_listed(lacking)}.')
    facts = {system: _facts(own, panel.norm) for system, own in of_system.items()}
    for name in dict.fromkeys(name for own in facts.values() for name in own):
        values = {system: own[name] for system, own in facts.items() if name in own}
        if len(set(values.values())) > 1:
            remarks.append(_told_apart(name, values))
    return (_WARNING, *remarks) if remarks else ()


def _attacks(rows: Sequence[ResultRow]) -> dict[str, None]:
    """Those that every run of a system met, without the worst over several, in order of appearance."""
    attacks = dict.fromkeys((_plain(row.attack), (row.seed, run_of(row))) for row in rows
                            if row.attack not in (CLEAN, _UNAWARE, *PER_IMAGE))
    runs = len({(row.seed, run_of(row)) for row in rows})
    count = Counter(attack for attack, _ in attacks)
    return dict.fromkeys(attack for attack, _ in attacks if count[attack] == runs)


def _plain(attack: str) -> str:
    return _TRANSFER if attack.startswith(f'{_TRANSFER}_') else attack


def _facts(rows: Sequence[ResultRow], norm: str) -> dict[str, str]:
    """What else decides how hard a system was tried, in words; several values where its runs differ."""
    found: dict[str, dict[str, None]] = {}

    def add(name: str, value: Any) -> None:
        found.setdefault(name, {})[str(value)] = None

    for row in rows:
        add('images', row.n)
        if row.attack == _AWARE and 'num_guides' in row.attack_options:
            add('guides of the aware attack', row.attack_options['num_guides'])
        settings = row.provenance.get('settings') or {}
        for name, text in _SYSTEM.items():
            if name in settings.get('system', {}) and (name not in _OF_DETECTORS or _has_detector(settings)):
                add(text, settings['system'][name])
        for name, spec in settings.get('attacks', {}).items():
            add(f'settings of {name}', _settings_text(spec))
        if settings.get('surrogate') and settings['surrogate'][0]:
            add('steps of the transfer attack', settings['surrogate'][1])
        if 'seed' in settings:
            add("seed of the attacks' draws", settings['seed'])
        if 'dataset_fingerprint' in settings:
            add('fingerprint of the data set', settings['dataset_fingerprint'][:8])
    radii = sorted({row.eps for row in rows if row.eps})
    return {'radii': ', '.join(eps_text(eps, norm) for eps in radii),
            **{name: ' or '.join(values) for name, values in found.items()}}


def _has_detector(settings: Mapping[str, Any]) -> bool:
    return settings.get('detector', ['none'])[0] != 'none'


def _settings_text(spec: Mapping[str, Any]) -> str:
    plain = {**{name: value for name, value in spec.items() if name != 'options' and value != []},
             **spec.get('options', {})}
    return ', '.join(f'{name} {value}' for name, value in plain.items())


def _told_apart(name: str, values: Mapping[str, str]) -> str:
    """'Images: 100 for "natural+lid"; 200 for all others.'"""
    usual = Counter(values.values()).most_common(1)[0][0]
    others = {value: [system for system in values if values[system] == value] for value in values.values()}
    parts = [f'{value} for {_listed(systems)}' for value, systems in others.items() if value != usual]
    return f'{name[0].upper()}{name[1:]}: {"; ".join([*parts, f"{usual} for all others"])}.'


def _listed(systems: Sequence[str]) -> str:
    *others, last = (f'"{system}"' for system in systems)  # names hold commas: 'ssat, 10 % of labels'
    return ' and '.join(filter(None, [', '.join(others), last]))
