"""Records: nothing is lost or half written, nothing is unpickled, re-runs replace."""
import dataclasses
import json
import math
import os

import numpy as np
import pytest

from medrobust_jax.evaluate import provenance as provenance_module
from medrobust_jax.evaluate import records
from medrobust_jax.evaluate.provenance import provenance
from medrobust_jax.evaluate.records import Row
from medrobust_jax.metrics.intervals import wilson


def row(**changes):
    fields = {
        'dataset': 'pneumoniamnist', 'split': 'test', 'model': 'resnet18', 'defense': 'pgd_at', 'seed': 0,
        'attack': 'pgd', 'norm': 'linf', 'eps': 8 / 255, 'metric': 'accuracy', 'value': 0.5, 'low': 0.4,
        'high': 0.6, 'n': 624, 'interval': 'wilson', 'attack_options': {'num_steps': 20},
        'forward_passes': 21.0, 'backward_passes': 20.0, 'warnings': ('input gradients vanish',),
        'provenance': {'checkpoint_fingerprint': 'abc'},
    }
    return Row(**fields | changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'run' / 'results.jsonl'


def test_rows_come_back_as_written(path):
    rows = [row(), row(eps=4 / 255, warnings=()), row(attack='clean', norm='', eps=0.0)]
    for each in rows:
        records.append_row(path, each)
    assert records.read_rows(path) == rows


def test_strict_json_has_null_and_no_nan(path):
    options = {'c': np.float32(2), 'top': np.inf}
    evidence = {'wall_seconds': math.nan, 'shape': np.arange(2)}
    records.append_row(path, row(value=math.nan, low=math.nan, attack_options=options, provenance=evidence))

    def refuse(constant):
        raise AssertionError(constant)

    fields = json.loads(path.read_text(), parse_constant=refuse)
    assert fields['value'] is None
    assert fields['attack_options'] == {'c': 2.0, 'top': 'inf'}
    assert fields['provenance'] == {'wall_seconds': None, 'shape': [0, 1]}
    back, = records.read_rows(path)
    assert math.isnan(back.value)
    assert back.high == 0.6


def test_what_json_lacks_is_refused_before_anything_is_written(path):
    with pytest.raises(ValueError, match='plain values'):
        records.append_row(path, row(attack_options={'loss': math.sin}))
    assert not path.exists()


def test_every_torn_end_is_dropped_on_read_and_cut_on_append(path, caplog):
    records.append_row(path, row())
    records.append_row(path, row(eps=0.1))
    whole = path.read_bytes()
    first = whole.index(b'\n') + 1
    for cut in (first + 1, first + 40, len(whole) - 2):
        path.write_bytes(whole[:cut])
        caplog.clear()
        assert records.read_rows(path) == [row()]
        assert 'torn' in caplog.text
        assert path.stat().st_size == cut, 'reading must not change the file'
        records.append_row(path, row(eps=0.2))
        assert records.read_rows(path) == [row(), row(eps=0.2)]
        assert path.read_bytes().startswith(whole[:first])


def test_a_row_that_lacks_only_its_newline_is_kept(path):
    records.append_row(path, row())
    path.write_bytes(path.read_bytes()[:-1])
    assert records.read_rows(path) == [row()]
    records.append_row(path, row(eps=0.2))
    assert records.read_rows(path) == [row(), row(eps=0.2)]


def test_a_damaged_line_in_the_middle_is_named(path):
    for eps in (0.1, 0.2, 0.3):
        records.append_row(path, row(eps=eps))
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([lines[0], lines[1][:50], lines[2], '']))
    with pytest.raises(ValueError, match=r'results\.jsonl, line 2'):
        records.read_rows(path)
    path.write_text(lines[0] + '\n' + '{"dataset": "x"}\n')
    with pytest.raises(ValueError, match='line 2'):
        records.read_rows(path)


def test_a_rerun_replaces_and_another_checkpoint_does_not(path):
    other = row(provenance={'checkpoint_fingerprint': 'xyz'})
    rerun = row(value=0.45, attack_options={'num_steps': 100})
    for each in (row(), other, row(metric='auroc'), rerun):
        records.append_row(path, each)
    assert records.read_rows(path) == [rerun, other, row(metric='auroc')]
    assert records.merge_rows([row(), other], [rerun]) == [rerun, other]


def test_update_writes_each_measurement_once(path):
    path.parent.mkdir()
    records.update_rows(path, [row(), row(eps=0.1)])
    merged = records.update_rows(path, [row(value=0.3), row(eps=0.2)])
    assert len(path.read_text().splitlines()) == len(merged) == 3
    assert records.read_rows(path) == merged
    assert os.listdir(path.parent) == ['results.jsonl']


def test_a_full_disk_takes_back_the_half_line_and_names_the_file(path, monkeypatch):
    records.append_row(path, row())
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, 'write', lambda handle, data: write(handle, data[:30]))
    with pytest.raises(OSError, match=r"No space left on device: '.*results\.jsonl'"):
        records.append_row(path, row(eps=0.1))
    assert path.read_bytes() == before


def test_update_drops_what_is_not_kept(path):
    for each in (row(), row(eps=0.1), row(attack='fgsm')):
        records.append_row(path, each)
    merged = records.update_rows(path, [row(value=0.3)], keep_fn=lambda each: each.attack == 'fgsm')
    assert [(each.attack, each.value) for each in merged] == [('fgsm', 0.5), ('pgd', 0.3)]
    assert records.read_rows(path) == merged


def test_a_failing_update_leaves_the_file_and_no_litter(path, monkeypatch):
    records.append_row(path, row())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match=r'cannot write results.*results\.jsonl'):
        records.update_rows(path, [row(eps=0.1)])
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ['results.jsonl']


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'cannot write results.*file/results\.jsonl'):
        records.append_row(tmp_path / 'file' / 'results.jsonl', row())
    with pytest.raises(FileNotFoundError, match=r'cannot read results.*none\.jsonl'):
        records.read_rows(tmp_path / 'none.jsonl')


def test_rows_of_estimates():
    common = {f.name: getattr(row(), f.name) for f in dataclasses.fields(Row)
              if f.name not in ('metric', 'value', 'low', 'high', 'n', 'interval')}
    made, = records.rows_of({'accuracy': wilson(3, 4)}, **common)
    assert (made.metric, made.value, made.n, made.interval) == ('accuracy', 0.75, 4, 'wilson')
    assert made.attack == 'pgd'


def test_provenance_is_plain_and_complete(path):
    evidence = provenance(checkpoint_fingerprint='abc', block_width=8, wall_seconds=1.5)
    assert {'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'medrobust_jax', 'python'} == set(evidence['versions'])
    assert evidence['versions']['numpy'] == np.__version__
    assert evidence['device'] == 'cpu x 8'
    assert evidence['time'].endswith('+00:00')
    records.append_row(path, row(provenance=evidence))
    assert records.read_rows(path)[0].provenance == evidence


def test_commit_is_empty_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance_module.medrobust_jax, '__file__', str(tmp_path / '__init__.py'))
    assert provenance_module._commit() == ''
