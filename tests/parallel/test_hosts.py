"""Two processes on one machine train as one does."""
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from medrobust_jax.train.checkpoint import load_for_evaluation
from medrobust_jax.train.writer import read_rows

PROGRAM = [sys.executable, str(Path(__file__).parents[1] / 'train/small_run.py')]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    subprocess.run([*PROGRAM, str(tmp_path / 'one')], check=True, timeout=300)
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    processes = [subprocess.Popen([*PROGRAM, str(tmp_path / 'two'), '--coordinator', address,
                                   '--processes', '2', '--process', str(index)],
                                  stderr=subprocess.PIPE, text=True) for index in range(2)]
    try:
        ends = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], ends
    one, two = (load_for_evaluation(tmp_path / name, 'latest') for name in ('one', 'two'))
    assert two[2]['step'] == 24
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one[:2], two[:2])
    losses = [[row['train/loss'] for row in read_rows(tmp_path / name / 'metrics.jsonl') if 'train/loss' in row]
              for name in ('one', 'two')]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert len(losses[0]) == 24
