"""The canary sees a broken compiler, in a process of its own: flags act before JAX starts."""
import os
import subprocess
import sys
from importlib import metadata

import pytest

from medrobust_jax.core import numerics

JAXLIB = metadata.version('jaxlib')


def run(code, flags):
    environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-c', code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(JAXLIB != '0.10.2' and not JAXLIB.startswith(('0.11.', '0.12.')),
                    reason=f'jaxlib {JAXLIB} is not known to compute wrong without the flag')
def test_canary_stops_a_program_without_the_flag_and_names_the_cure():
    done = run('from medrobust_jax.core import numerics; numerics.canary()', '')
    assert done.returncode != 0
    assert f'RuntimeError: jaxlib {JAXLIB} computes' in done.stderr
    assert 'XLA_FLAGS="--xla_cpu_experimental_ynn_fusion_type=-reduce"' in done.stderr


def test_prepare_sets_the_flag_beside_those_of_the_user():
    done = run('import os; from medrobust_jax.core import numerics; numerics.prepare(); '
               'print(os.environ["XLA_FLAGS"])', '--xla_cpu_multi_thread_eigen=true')
    assert done.returncode == 0, done.stderr
    assert '--xla_cpu_multi_thread_eigen=true' in done.stdout


def test_canary_passes_here():
    numerics.canary()


@pytest.mark.parametrize(('version', 'types'), [
    ('0.10.1', None), ('0.10.2', '-reduce,-individual_convolution'), ('0.11.2', '-reduce'),
    ('0.12.0.1', '-reduce'), ('0.10.2rc1', '-reduce,-individual_convolution'),
    ('0.13.0.dev20261101', '-reduce'), ('1.0.0', '-reduce')])
def test_flag_by_version(version, types, monkeypatch):
    monkeypatch.setattr(numerics.metadata, 'version', lambda name: version)
    monkeypatch.setenv('XLA_FLAGS', '--other=1')
    numerics.configure_xla()
    flag = '' if types is None else f' --xla_cpu_experimental_ynn_fusion_type={types}'
    assert os.environ['XLA_FLAGS'] == '--other=1' + flag


def test_flag_of_the_user_is_left_alone(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type=mine')
    numerics.configure_xla()
    assert os.environ['XLA_FLAGS'] == '--xla_cpu_experimental_ynn_fusion_type=mine'
