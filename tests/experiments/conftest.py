"""One small run, trained once, for all tests that look at a trained workdir."""
import importlib.util
import shutil
from pathlib import Path

import pytest

from experiments.train import train_and_evaluate

CONFIG = Path(__file__).with_name('tiny_config.py')


def _get_config(defense='pgd_at'):
    spec = importlib.util.spec_from_file_location('tiny_config', CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(defense)


@pytest.fixture
def tiny_config():
    """`tiny_config(defense)` -> a new ConfigDict of the smallest run."""
    return _get_config


@pytest.fixture(scope='session')
def _trained_once(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'pgd_at'
    return workdir, train_and_evaluate(_get_config(), workdir, progress=False)


@pytest.fixture
def trained(_trained_once, tmp_path):
    """A copy of the trained workdir."""
    shutil.copytree(_trained_once[0], tmp_path / 'pgd_at')
    return tmp_path / 'pgd_at'


@pytest.fixture
def fit_result(_trained_once):
    """What its training returned."""
    return _trained_once[1]
