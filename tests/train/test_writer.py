"""Metrics files: resumed without repeats, whole after a kill, clear on a full disk."""
import math
from pathlib import Path

import pytest

from medrobust_jax.train.writer import MetricWriter, read_rows


def test_rows_are_on_disk_at_once_and_nan_is_null(tmp_path):
    with MetricWriter(tmp_path, start_step=0) as writer:
        writer.write(1, {'loss': 0.5, 'speed': math.nan})
        assert read_rows(writer.path) == [{'step': 1, 'loss': 0.5, 'speed': None}]
    assert list((tmp_path / 'tensorboard').glob('events*'))


def test_a_resumed_run_drops_later_rows_and_half_a_line(tmp_path):
    with MetricWriter(tmp_path, start_step=0, tensorboard=False) as writer:
        for step in (10, 20, 30):
            writer.write(step, {'loss': float(step)})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 40, "lo')
    with MetricWriter(tmp_path, start_step=20, tensorboard=False) as writer:
        writer.write(30, {'loss': 31.0})
    assert [(row['step'], row['loss']) for row in read_rows(tmp_path / 'metrics.jsonl')] == [
        (10, 10.0), (20, 20.0), (30, 31.0)]
    assert not (tmp_path / 'tensorboard').exists()


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr('medrobust_jax.parallel.hosts.is_primary', lambda: False)
    with MetricWriter(tmp_path / 'run', start_step=0) as writer:
        writer.write(1, {'loss': 0.5})
    assert not (tmp_path / 'run').exists()


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs the device /dev/full, which only Linux has')
def test_a_full_disk_says_so(tmp_path):
    writer = MetricWriter(tmp_path, start_step=0, tensorboard=False)
    writer._file.close()
    writer._file = Path('/dev/full').open('a')  # noqa: SIM115 - the writer closes it
    for call in (lambda: writer.write(1, {'loss': 0.5}), writer.close):
        with pytest.raises(OSError, match=r'No space left on device\. Free space there'):
            call()


def test_a_file_in_the_way_says_so(tmp_path):
    (tmp_path / 'run').write_text('')
    with pytest.raises(OSError, match='cannot write under'):
        MetricWriter(tmp_path / 'run', start_step=0)
