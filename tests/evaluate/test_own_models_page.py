"""The code of docs/own_models.md runs and prints what the page shows: margins are planted, so that is known."""
import re
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

from medrobust_jax.evaluate import own_model
from medrobust_jax.parallel.mesh import data_mesh

PAGE = (Path(__file__).parents[2] / 'docs' / 'own_models.md').read_text(encoding='utf-8')


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """`run(label, **names)` -> what the page's blocks with this label print, and the page's word for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_model, 'data_mesh', lambda: data_mesh(jax.devices()[:1]))

    def blocks(label, **names):
        found = re.findall(rf'<!-- test: {label} -->\n```python\n(.*?)```\n(?:\n```\n(.*?)```)?', PAGE, re.DOTALL)
        assert found
        for code, _ in found:
            exec(compile(code, f'docs/own_models.md, {label}', 'exec'), names)
        return capsys.readouterr().out.rstrip(), found[-1][1].rstrip()
    return blocks


def linear(radii):
    """Weights [16, 2] and images, the i-th of which falls beyond radii[i] / 255, and their labels."""
    half = np.random.default_rng(0).normal(size=16)
    labels = np.arange(len(radii)) % 2
    images = .5 + np.where(labels, 1, -1)[:, None] * np.asarray(radii)[:, None] / 255 * np.sign(half)
    return {'weights': np.stack([-half, half], axis=1).astype(np.float32), 'labels': labels,
            'images': images.reshape(-1, 4, 4, 1).astype(np.float32)}


def test_a_function_in_jax(run):
    printed, shown = run('jax', **linear([2] * 5 + [6] * 5 + [12] * 10))
    assert printed == shown


def test_an_exported_artifact(run, tmp_path):
    printed, shown = run('export', **linear([2] * 5 + [6] * 15))
    assert printed == shown == '[0.75]'
    assert (tmp_path / 'model.npz').exists()


@pytest.mark.peers
@pytest.mark.skipif(not find_spec('torch'), reason='PyTorch is missing: run `make test-peers`')
def test_a_pytorch_module(run, tmp_path):
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 4, stride=4), torch.nn.Flatten())  # mean of each quarter
    with torch.no_grad():
        module[0].weight.fill_(1.)
        module[0].bias.fill_(0.)
    labels, radii = torch.arange(24) % 4, torch.tensor([4, 12, 24]).repeat_interleave(8)
    images = torch.full((24, 1, 8, 8), .5)
    for image, label, radius in zip(images, labels, radii, strict=True):
        down, right = divmod(int(label), 2)
        image[:, 4 * down:4 * down + 4, 4 * right:4 * right + 4] += 2 * radius / 255
    printed, shown = run('torch', module=module, torch_images=images, torch_labels=labels)
    assert printed == shown
    assert '<html' in (tmp_path / 'report.html').read_text(encoding='utf-8')
