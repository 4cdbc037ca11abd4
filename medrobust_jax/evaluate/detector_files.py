"""A fitted detector in a file beside the checkpoint that it was fitted on.

One npz: the state's arrays, and the rest as JSON. It is written whole or not at all, nothing in it is unpickled,
and the arrays come back to the bit.

Contents: `SavedDetector`, `save_detector`, `load_detector`.

Example:

    save_detector(workdir / 'detectors' / 'gaussian.npz', 'gaussian', {'shrinkage': .01}, state, threshold,
                  provenance(checkpoint_fingerprint=fingerprint))
    saved = load_detector(path, checkpoint_fingerprint=fingerprint)
    detector = create_detector(saved.name, **saved.options)
    scores = detector.score(saved.state, evidence)
"""
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medrobust_jax.core.types import PyTree
from medrobust_jax.data.files import read_npz
from medrobust_jax.detectors.threshold import Threshold
from medrobust_jax.evaluate.files import plain, save_arrays
from medrobust_jax.evaluate.resume import digest_of
from medrobust_jax.metrics.intervals import Estimate

FORMAT = 'medrobust_jax detector 1'
_ABOUT, _DIGEST = 'about', 'digest'


class SavedDetector(NamedTuple):
    """What a file holds.

    Attributes:
      name: the detector's, a key of `detectors.registry.DETECTORS`.
      options: the plain options that it was made with.
      state: what it was fitted to, mappings and tuples of NumPy arrays.
      threshold: where it rejects, or None.
      provenance: where it comes from, at least 'checkpoint_fingerprint'.
    """

    name: str
    options: dict[str, Any]
    state: PyTree
    threshold: Threshold | None
    provenance: dict[str, Any]


def save_detector(path: str | Path, name: str, options: Mapping[str, Any], state: PyTree,
                  threshold: Threshold | None, provenance: Mapping[str, Any]) -> None:
    """Writes a fitted detector, whole or not at all.

    Args:
      path: the npz file; its folder is made where missing.
      name: the detector's.
      options: plain values; functions (`forward`) are not saved, whoever loads gives them anew.
      state: mappings with names for keys, and tuples, of arrays.
      threshold: from `detectors.threshold.calibrate`, or None.
      provenance: plain values; 'checkpoint_fingerprint' says of which model.

    Raises:
      ValueError: no checkpoint fingerprint, or options, state or provenance that cannot be written.
      OSError: the disk is full or read-only; names the path.
    """
    if not provenance.get('checkpoint_fingerprint'):
        raise ValueError("provenance must hold 'checkpoint_fingerprint': a detector serves one model alone")
    arrays: list[np.ndarray] = []
    layout = _outlined(state, arrays, 'state')
    limit = None if threshold is None else {**threshold._asdict(), 'false_alarms': [*threshold.false_alarms]}
    about = json.dumps(plain({'format': FORMAT, 'name': name, 'options': dict(options), 'layout': layout,
                              'threshold': limit, 'provenance': dict(provenance)}), allow_nan=False)
    named = {f'array{index}': array for index, array in enumerate(arrays)}
    digest = digest_of(np.asarray(about), *arrays)
    save_arrays(path, {**named, _ABOUT: np.asarray(about), _DIGEST: np.asarray(digest)})


def load_detector(path: str | Path, *, checkpoint_fingerprint: str | None = None) -> SavedDetector:
    """Reads a fitted detector.

    Args:
      path: a file of `save_detector`.
      checkpoint_fingerprint: of the model that it shall serve; None takes any.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, no detector, or was fitted on another model.
    """
    arrays = read_npz(path)
    if _ABOUT not in arrays or _DIGEST not in arrays:
        raise ValueError(f'{path} holds no detector: it lacks {_ABOUT} and {_DIGEST}; save it with save_detector')
    values = [arrays[f'array{index}'] for index in range(len(arrays) - 2) if f'array{index}' in arrays]
    if digest_of(arrays[_ABOUT], *values) != str(arrays[_DIGEST]):
        raise ValueError(f'{path} is damaged: its contents do not match the digest saved with them; fit the '
                         f'detector again')
    about = json.loads(str(arrays[_ABOUT]))
    if about['format'] != FORMAT:
        raise ValueError(f"{path} is of the format '{about['format']}', this version reads '{FORMAT}'")
    fitted_on = about['provenance']['checkpoint_fingerprint']
    if checkpoint_fingerprint is not None and fitted_on != checkpoint_fingerprint:
        raise ValueError(f'{path} was fitted on the model {fitted_on}, not on {checkpoint_fingerprint}: fit the '
                         f"detector '{about['name']}' again on this checkpoint")
    return SavedDetector(about['name'], about['options'], _rebuilt(about['layout'], values),
                         _threshold(about['threshold']), about['provenance'])


def _threshold(fields: dict[str, Any] | None) -> Threshold | None:
    if fields is None:
        return None
    value, low, high, n, method = fields['false_alarms']
    low, high = (math.nan if end is None else end for end in (low, high))  # JSON lacks NaN
    return Threshold(fields['tau'], Estimate(value, low, high, n, method), fields['allowed'])


def _outlined(tree: PyTree, arrays: list[np.ndarray], where: str) -> Any:
    """The tree with the places of its arrays, which are appended to `arrays`, in place of them."""
    if isinstance(tree, Mapping):
        if not all(isinstance(key, str) for key in tree):
            raise ValueError(f'{where} has keys that are not strings: {list(tree)}')
        return {'mapping': {key: _outlined(value, arrays, f'{where}.{key}') for key, value in tree.items()}}
    if isinstance(tree, tuple):
        return {'tuple': [_outlined(value, arrays, f'{where}[{index}]') for index, value in enumerate(tree)]}
    array = np.asarray(tree)
    if array.dtype.kind not in 'fiub':
        raise ValueError(f'{where} is {type(tree).__name__} of {array.dtype}: a state is made of mappings, tuples '
                         f'and arrays of plain numbers')
    arrays.append(array)
    return len(arrays) - 1


def _rebuilt(layout: Any, arrays: list[np.ndarray]) -> PyTree:
    if isinstance(layout, int):
        return arrays[layout]
    if 'tuple' in layout:
        return tuple(_rebuilt(part, arrays) for part in layout['tuple'])
    return {key: _rebuilt(part, arrays) for key, part in layout['mapping'].items()}
