"""Hashes that tell checkpoints and configs apart.

Contents: `fingerprint` of arrays, `config_fingerprint`, `differing_fields` of two configs.

Example:

    fingerprint({'params': params, 'model_state': model_state})      # as checkpoints record it
    differing_fields({'attack': {'eps': 0.03}}, {'attack': {'eps': 0.06}})   # ['attack.eps: 0.03 -> 0.06']
"""
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from medrobust_jax.core.types import PyTree


def fingerprint(tree: PyTree) -> str:
    """SHA-256 over the paths, dtypes, shapes and bytes of a tree's arrays, as 64 hex digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape};'.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def differing_fields(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = '') -> list[str]:
    """`'field: theirs -> ours'` for every field, dotted, in which two nested configs differ."""
    lines = []
    for name in sorted({*theirs, *ours}):
        a, b = theirs.get(name, '(absent)'), ours.get(name, '(absent)')
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differing_fields(a, b, f'{prefix}{name}.')
        elif a != b:
            lines.append(f'{prefix}{name}: {a} -> {b}')
    return lines


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config's JSON with sorted names."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
