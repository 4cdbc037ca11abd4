"""Benchmark rows on disk: JSON lines with their provenance.

Contents: `append`.

Example:

    append('benchmarks/results/pgd_speed.jsonl', [{'benchmark': 'pgd_speed', 'ratio': 1.0}])
"""
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from medrobust_jax.evaluate.provenance import provenance

_PEERS = ('torch', 'torchattacks', 'pyautoattack', 'adversarial-robustness-toolbox')


def append(path: str | Path, table: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to a file, each with versions, commit, device and time."""
    evidence = {name: value for name, value in provenance().items()
                if name in ('versions', 'commit', 'device', 'time')}
    for name in _PEERS:
        try:
            evidence['versions'][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', encoding='utf-8') as file:
        for row in table:
            file.write(json.dumps({**row, 'provenance': evidence}) + '\n')
