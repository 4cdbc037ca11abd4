"""Without PyTorch the bridge says what to install; what it does with PyTorch is in tests/peers."""
import sys

import pytest

from medrobust_jax.models.torch_bridge import from_torch


def test_missing_pytorch_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(ImportError, match=r"pip install 'medrobust_jax\[torch\]'"):
        from_torch(object())
