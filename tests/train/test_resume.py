"""A run killed at any moment and started again ends in the same bits."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from medrobust_jax.train.checkpoint import load_for_evaluation
from medrobust_jax.train.writer import read_rows

# The compiled program is kept between the runs: bits must not depend on who compiled it, and it is faster.
CACHE = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
PROGRAM = [sys.executable, str(Path(__file__).with_name('small_run.py'))]
STEPS = 24


def environment(workdir):
    return os.environ | CACHE | {'JAX_COMPILATION_CACHE_DIR': str(workdir.parent / 'cache')}


def kill_at(step, number, workdir):
    """Starts the program, sends the signal once a row of `step` is written, returns (status, stderr)."""
    process = subprocess.Popen([*PROGRAM, str(workdir), '--pace', '0.05'], stderr=subprocess.PIPE, text=True,
                               env=environment(workdir))
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if any(row['step'] >= step for row in read_rows(workdir / 'metrics.jsonl')):
            process.send_signal(number)
            break
        time.sleep(0.005)
    _, text = process.communicate(timeout=300)
    return process.returncode, text


def finish(workdir):
    subprocess.run([*PROGRAM, str(workdir)], check=True, timeout=300, env=environment(workdir))


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bits(tmp_path):
    """SIGKILL twice (once beside a save, at step 9), then SIGTERM, then to the end."""
    finish(tmp_path / 'whole')
    killed = tmp_path / 'killed'
    assert kill_at(5, signal.SIGKILL, killed)[0] == -signal.SIGKILL
    assert kill_at(9, signal.SIGKILL, killed)[0] == -signal.SIGKILL
    status, text = kill_at(13, signal.SIGTERM, killed)
    assert status == 143
    assert 'run the same command again to go on' in text
    stopped_at = load_for_evaluation(killed, 'latest')[2]['step']
    assert 13 <= stopped_at < STEPS
    finish(killed)
    for which in ('latest', 'best'):
        whole, again = (load_for_evaluation(workdir, which) for workdir in (tmp_path / 'whole', killed))
        jax.tree.map(np.testing.assert_array_equal, whole[:2], again[:2])
        assert whole[2] == again[2]
    rows = [read_rows(workdir / 'metrics.jsonl') for workdir in (tmp_path / 'whole', killed)]
    losses = [{row['step']: row['train/loss'] for row in run if 'train/loss' in row} for run in rows]
    assert losses[0] == losses[1]
    assert sorted(losses[0]) == list(range(1, STEPS + 1))
