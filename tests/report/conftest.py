"""Result rows as evaluations of several kinds leave them."""
import math

import pytest

from medrobust_jax.evaluate.records import Row

PROVENANCE = {'config_fingerprint': 'config-0', 'dataset_fingerprint': 'data-0', 'commit': 'c0ffee',
              'versions': {'jax': '0.10.2', 'python': '3.11'}, 'device': 'cpu x 1', 'block_width': 8,
              'wall_seconds': 1.0, 'time': '2026-01-01T00:00:00+00:00'}


def _row(value=0.5, **changes):
    """A row of a natural model on clean images, with what changes."""
    checkpoint = changes.pop('checkpoint', f'{changes.get("defense", "standard")}-{changes.get("seed", 0)}')
    fields = {'dataset': 'oct', 'split': 'test', 'model': 'resnet', 'defense': 'standard', 'seed': 0,
              'attack': 'clean', 'norm': '', 'eps': 0.0, 'metric': 'accuracy', 'value': value,
              'low': value - 0.05, 'high': value + 0.05, 'n': 400, 'interval': 'wilson',
              'provenance': {**PROVENANCE, 'checkpoint_fingerprint': checkpoint}}
    if changes.get('attack', 'clean') != 'clean':
        fields |= {'norm': 'linf', 'attack_options': {'num_steps': 20}, 'forward_passes': 21.0,
                   'backward_passes': 20.0}
    return Row(**fields | changes)


def _rows(attacks=('fgsm', 'pgd'), seeds=(0,), defenses=('standard', 'pgd_at'), grid=(2, 8), **changes):
    """A whole evaluation; accuracy falls with eps and with the attack's place in the list."""
    rows = []
    for defense in defenses:
        for seed in seeds:
            own = {'defense': defense, 'seed': seed, **changes}
            rows.append(_row(0.9 - 0.01 * seed, **own))
            rate = 0.3 if defense == 'standard' else 0.05
            rows += [_row(0.9 * math.exp(-rate * k * (1 + i)) - 0.01 * seed, attack=attack, eps=k / 255, **own)
                     for i, attack in enumerate(attacks) for k in grid]
    return rows


@pytest.fixture
def make_row():
    return _row


@pytest.fixture
def make_rows():
    return _rows


@pytest.fixture
def rows():
    return _rows()
