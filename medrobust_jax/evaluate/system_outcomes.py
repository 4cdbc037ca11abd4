"""What happened to every image of a judged system, kept so that systems can be compared in pairs.

Contents: `SystemOutcomes`, `save_outcomes`, `load_outcomes`, `holds_outcomes`, `check_comparable`, `compared`.

Example:

    ssat, natural = load_outcomes('runs/ssat')['ssat+gaussian'], load_outcomes('runs/natural')['natural']
    check_comparable([ssat, natural])
    for row in compared(ssat, natural):
        print(row['eps'], row['difference'], row['low'], row['high'])
"""
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medrobust_jax.evaluate.files import naming, plain, save_arrays
from medrobust_jax.evaluate.pairs import is_supported
from medrobust_jax.metrics.risk import Outcomes, risk_difference

FOLDER = 'systems'
# Settings that may differ between systems that are compared; all others must not.
_OWN = ('detector', 'config_fingerprint', 'checkpoint_fingerprint')


class SystemOutcomes(NamedTuple):
    """A system under the worst of its attacks.

    Attributes:
      label: the defense and its detector, as in tables.
      eps: `[E]` radii, ascending.
      index: `[N]` rows in the data set.
      groups: `[N]` patient ids, or None.
      worst: one `Outcomes` per radius.
      settings: plain values, all that decides the outcomes.
    """

    label: str
    eps: np.ndarray
    index: np.ndarray
    groups: np.ndarray | None
    worst: Sequence[Outcomes]
    settings: Mapping[str, Any]


def save_outcomes(workdir: str | Path, name: str, system: SystemOutcomes) -> None:
    """Writes `workdir/systems/<name>.npz`; `name` is the detector's."""
    groups = {} if system.groups is None else {'groups': np.asarray(system.groups)}
    save_arrays(Path(workdir) / FOLDER / f'{name}.npz', {
        'label': np.asarray(system.label), 'eps': np.asarray(system.eps), 'index': np.asarray(system.index),
        **groups, 'wrong': np.stack([each.wrong for each in system.worst]),
        'reached': np.stack([each.reached for each in system.worst]),
        'settings': np.asarray(json.dumps(plain(system.settings)))})


def load_outcomes(workdir: str | Path) -> dict[str, SystemOutcomes]:
    """All systems of a workdir by their label.

    Raises:
      FileNotFoundError: none was judged there.
      ValueError: they are of several checkpoints.
    """
    found = {system.label: system for system in map(_load, sorted((Path(workdir) / FOLDER).glob('*.npz')))}
    if not found:
        raise FileNotFoundError(f'{workdir}/{FOLDER} holds no system: run experiments.system with '
                                f'--workdir={workdir} first')
    if len({system.settings['checkpoint_fingerprint'] for system in found.values()}) > 1:
        raise ValueError(f'{workdir}/{FOLDER} holds systems of several checkpoints: remove those of the older')
    return found


def holds_outcomes(workdir: str | Path, name: str, label: str, settings: Mapping[str, Any],
                   eps: Sequence[float]) -> bool:
    """Whether `workdir/systems/<name>.npz` is of this system, under these settings and at these radii."""
    path = Path(workdir) / FOLDER / f'{name}.npz'
    if not path.is_file():
        return False
    kept = _load(path)
    return (kept.label, kept.settings, kept.eps.tolist()) == (label, plain(settings), sorted(map(float, eps)))


def _load(path: Path) -> SystemOutcomes:
    with naming(path, 'read a system'), np.load(path) as file:
        worst = [Outcomes(*pair) for pair in zip(file['wrong'], file['reached'], strict=True)]
        return SystemOutcomes(str(file['label']), file['eps'], file['index'], file.get('groups'), worst,
                              json.loads(str(file['settings'])))


def check_comparable(systems: Sequence[SystemOutcomes]) -> None:
    """Raises ValueError, naming what differs, unless all systems met the same attacks on the same images.

    Which model a transfer attack came from may differ, since a model is no surrogate of its own; whether there was
    one may not.
    """
    first = systems[0]
    for other in systems[1:]:
        a, b = _shared(first.settings), _shared(other.settings)
        differing = [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
        if not np.array_equal(first.index, other.index):
            differing.append('images')
        if not np.array_equal(first.eps, other.eps):
            differing.append('eps')
        if differing:
            raise ValueError(f'{first.label} and {other.label} cannot be compared; they differ in '
                             + ', '.join(differing))


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    checkpoint, num_steps = settings['surrogate']
    kept = {name: value for name, value in settings.items() if name not in _OWN}
    return {**kept, 'surrogate': [num_steps] if checkpoint else []}


def compared(claimed: SystemOutcomes, other: SystemOutcomes) -> Iterator[dict[str, Any]]:
    """R_sys of `claimed` minus that of `other`, one row per radius, paired over patients or images.

    'supported' is True where the whole 95 % interval is below zero, False where it is above, else None.
    """
    for eps, ours, theirs in zip(claimed.eps, claimed.worst, other.worst, strict=True):
        difference = risk_difference(theirs.reached, ours.reached, claimed.groups)
        yield plain({
            'claim': 'first has the lower risk', 'first': claimed.label, 'second': other.label, 'eps': eps,
            'first_value': ours.reached.mean(), 'second_value': theirs.reached.mean(),
            'difference': difference.value, 'low': difference.low, 'high': difference.high,
            'interval': difference.method, 'n': len(ours.reached),
            'supported': is_supported(difference, lower_is_claimed=True),
            'settings': claimed.settings, 'second_settings': other.settings})
