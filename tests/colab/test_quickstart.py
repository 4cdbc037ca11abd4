"""The notebook runs from its first cell to its picture."""
import os
import sys
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

NOTEBOOK = Path(__file__).parents[2] / 'colab' / 'quickstart.ipynb'


def execute(notebook, folder):
    """Runs all cells with this interpreter and returns the executed copy; raises where a cell does."""
    client = NotebookClient(notebook, timeout=600, kernel_name='python3',
                            resources={'metadata': {'path': str(folder)}})
    return client.execute()


@pytest.fixture
def kernel_environment(monkeypatch, tmp_path):
    """Keeps the kernel's files out of the home directory, and its compiled programs in the tests' cache."""
    for name in ('IPYTHONDIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR'):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv('MEDROBUST_FAST', '1')


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # the notebook machinery's own
def test_every_cell_runs_and_a_picture_is_shown(kernel_environment):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(new_code_cell('import sys; print(sys.executable)'))
    cells = execute(notebook, NOTEBOOK.parent).cells
    interpreter = cells.pop().outputs[0]['text'].strip()
    assert os.path.samefile(interpreter, sys.executable)
    pictures = [out for cell in cells if cell.cell_type == 'code' for out in cell.outputs
                if 'image/png' in out.get('data', {})]
    assert len(pictures) == 1
    printed = ''.join(out.get('text', '') for cell in cells if cell.cell_type == 'code' for out in cell.outputs)
    for text in ('noise  eps 0/255', 'PGD-20  eps 4/255', 'SMIA-20  eps 4/255', 'wilson', 'class means'):
        assert text in printed


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_a_cell_that_raises_fails(kernel_environment, tmp_path):
    with pytest.raises(CellExecutionError, match='broken on purpose'):
        execute(new_notebook(cells=[new_code_cell("raise RuntimeError('broken on purpose')")]), tmp_path)


def test_what_is_stored():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 150_000
    for cell in notebook.cells:
        assert 'raises-exception' not in cell.metadata.get('tags', [])
        for output in cell.get('outputs', []):
            assert output.output_type != 'error'
            assert output.get('name') != 'stderr'
