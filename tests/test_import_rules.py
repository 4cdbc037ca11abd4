"""The import layers and the fences around third-party libraries, read from the source."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {'core': 0, 'parallel': 0, 'losses': 1, 'metrics': 1, 'models': 1, 'data': 1,
          'attacks': 2, 'tasks': 2, 'detectors': 2, 'defenses': 3, 'train': 4, 'evaluate': 4, 'report': 4}
# Where alone a library may be imported; paths are prefixes relative to the root.
FENCES = {'flax': ('medrobust_jax/models/',),
          'orbax': ('medrobust_jax/train/checkpoint.py',),
          'tensorflow_datasets': ('medrobust_jax/data/',),
          'grain': ('medrobust_jax/data/loader.py',),
          'torch': ('medrobust_jax/models/torch_bridge.py',),
          'matplotlib': ('medrobust_jax/report/',),
          'sklearn': ('medrobust_jax/detectors/',),
          'absl.flags': ('experiments/', 'configs/'),
          'absl.app': ('experiments/', 'configs/'),
          'ml_collections': ('experiments/', 'configs/')}
DRIVERS = {'experiments', 'configs', 'tests', 'benchmarks'}
NARROW = {'attacks': {'core', 'losses', 'attacks'}}  # stricter than their layer
SOURCES = sorted(path for folder in ('medrobust_jax', 'experiments', 'configs')
                 for path in (ROOT / folder).rglob('*.py'))


def imports(source):
    """Yields the absolute dotted names that a source imports, also inside functions.

    `from a import b` yields `a.b`, whether `b` is a module or a name in `a`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'relative imports hide the layers'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def is_in(name, package):
    return name == package or name.startswith(package + '.')


def violations(path, source):
    """Why a file (its path relative to the root) breaks the rules, one line each."""
    parts = Path(path).parts
    package = parts[1] if parts[0] == 'medrobust_jax' and len(parts) > 2 else None
    for name in imports(source):
        for library, homes in FENCES.items():
            if is_in(name, library) and not any(path.startswith(home) for home in homes):
                yield f'{path}: imports {name}, which belongs in {homes}'
        top, *rest = name.split('.')
        if parts[0] == 'medrobust_jax' and top in DRIVERS:
            yield f'{path}: the library imports the driver {name}'
        if top != 'medrobust_jax' or package is None or not rest or rest[0] == package:
            continue
        if rest[0] not in LAYERS:
            yield f'{path}: {name} is in no layer'
        elif LAYERS[rest[0]] >= LAYERS[package]:
            yield f'{path}: {package} (layer {LAYERS[package]}) imports {rest[0]} (layer {LAYERS[rest[0]]})'
        elif rest[0] not in NARROW.get(package, LAYERS):
            yield f'{path}: {package} may not import {rest[0]}'


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_the_layers_and_fences(path):
    found = list(violations(path.relative_to(ROOT).as_posix(), path.read_text()))
    assert not found, '\n'.join(found)


def test_every_package_has_a_layer():
    packages = {path.name for path in (ROOT / 'medrobust_jax').iterdir() if (path / '__init__.py').exists()}
    assert packages <= set(LAYERS)
    assert len(SOURCES) > 40


def test_nothing_is_called_utils():
    folders = ('medrobust_jax', 'experiments', 'configs', 'tests', 'benchmarks')
    names = [path for folder in folders for path in (ROOT / folder).rglob('*')
             if path.stem in ('utils', 'util', 'helpers', 'misc', 'common') and '__pycache__' not in path.parts]
    assert not names


@pytest.mark.parametrize(('path', 'source'), [
    ('medrobust_jax/losses/x.py', 'from medrobust_jax.attacks.pgd import pgd'),
    ('medrobust_jax/attacks/x.py', 'import medrobust_jax.tasks.ordinal'),
    ('medrobust_jax/attacks/x.py', 'from medrobust_jax.models import resnet'),
    ('medrobust_jax/tasks/x.py', 'def f():\n    from medrobust_jax import defenses'),
    ('medrobust_jax/core/x.py', 'import flax.linen as nn'),
    ('medrobust_jax/train/loop.py', 'from orbax import checkpoint'),
    ('medrobust_jax/data/source.py', 'import grain.python as grain'),
    ('medrobust_jax/models/layers.py', 'import torch'),
    ('medrobust_jax/train/loop.py', 'from absl import flags'),
    ('medrobust_jax/metrics/x.py', 'from sklearn import metrics'),
    ('medrobust_jax/detectors/x.py', 'from medrobust_jax.tasks import ordinal'),
    ('medrobust_jax/train/loop.py', 'from experiments.build import build'),
    ('experiments/main.py', 'import matplotlib.pyplot as plt')])
def test_rules_catch(path, source):
    assert list(violations(path, source))


def test_rules_allow():
    assert not list(violations('medrobust_jax/train/loop.py', 'from absl import logging\nimport optax'))
    assert not list(violations('medrobust_jax/defenses/x.py', 'from medrobust_jax.attacks.run import perturb'))
