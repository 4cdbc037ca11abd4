"""Verdicts per example: what an attack did to each, as an npz without pickled objects.

Contents: `Verdicts`, `save_verdicts`, `load_verdicts`, `breaking_eps`.

Example:

    verdicts = load_verdicts(workdir / 'verdicts' / 'pgd.npz')
    verdicts.acceptable.mean(axis=1)                       # robust accuracy over the grid `verdicts.eps`
"""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medrobust_jax.data.files import read_npz
from medrobust_jax.evaluate.files import plain, save_arrays


class Verdicts(NamedTuple):
    """What an attack did to each example, over a grid of eps.

    Attributes:
      index: [N] int, rows of the data set.
      eps: [E] float, in units of [0, 1].
      acceptable: [E, N] bool, whether the model withstood.
      loss: [E, N] float, the loss there.
      first_fooled: [E, N] int, the first look that fooled the model, -1 for none.
      attacked: [E, N] bool, whether the example was attacked at this eps; elsewhere the verdict is inferred
        from other radii.
      withstood_clean: [N] bool, whether the model is right without an attack.
      label: [N] int, true classes or grades, or None where targets are no labels.
      prediction: [E, N] int, the class predicted for the strongest image found, or None likewise.
      quality: [E, N] or [E, N, k] float, what the criterion compares with its thresholds (`Task.quality`), at the
        strongest image found; None where the criterion has no threshold.
      clean_quality: [N] or [N, k] float, the same without an attack; None likewise, and in files of older
        versions.
      groups: [N] patient ids (integers or strings), or None.
      about: plain values that say what was attacked and how (attack, norm, fingerprints, ...).
    """

    index: np.ndarray
    eps: np.ndarray
    acceptable: np.ndarray
    loss: np.ndarray
    first_fooled: np.ndarray
    attacked: np.ndarray
    withstood_clean: np.ndarray
    label: np.ndarray | None = None
    prediction: np.ndarray | None = None
    quality: np.ndarray | None = None
    clean_quality: np.ndarray | None = None
    groups: np.ndarray | None = None
    about: Mapping[str, Any] = {}


def save_verdicts(path: str | Path, verdicts: Verdicts) -> None:
    """Writes verdicts as an npz without pickled objects, whole or not at all.

    Args:
      path: the file, e.g. `workdir/verdicts/pgd.npz`; its folder is made where missing.
      verdicts: arrays of matching shapes.

    Raises:
      OSError: the disk is full or read-only; names the path.
      ValueError: a shape does not fit, or ids are neither numbers nor strings.
    """
    arrays = {name: np.asarray(value) for name, value in verdicts._asdict().items()
              if name != 'about' and value is not None}
    _check_verdicts(arrays, path)
    arrays['about'] = np.asarray(json.dumps(plain(verdicts.about), allow_nan=False))
    save_arrays(path, arrays)


def load_verdicts(path: str | Path) -> Verdicts:
    """Reads what `save_verdicts` wrote; nothing is unpickled.

    Args:
      path: the file.

    Returns:
      The verdicts.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is truncated, foreign, or its shapes do not match; names the path.
    """
    try:
        arrays = read_npz(path)
        about = json.loads(str(arrays.pop('about')))
        _check_verdicts(arrays, path)
        return Verdicts(**arrays, about=about)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f'{path} holds no verdicts or is damaged ({error}); delete it and run the '
                         f'evaluation again') from error


def _check_verdicts(arrays: Mapping[str, np.ndarray], path: str | Path) -> None:
    n, num_eps = len(arrays['index']), len(arrays['eps'])
    for name, array in arrays.items():
        per_example = name in ('index', 'label', 'withstood_clean', 'groups', 'clean_quality')
        shape = (n,) if per_example else (num_eps,) if name == 'eps' else (num_eps, n)
        several = name in ('quality', 'clean_quality')  # numbers per example, where the criterion has thresholds
        if array.shape[:len(shape)] != shape or array.ndim > len(shape) + several:
            raise ValueError(f'{path}: {name} must have shape {shape}, got {array.shape}')
        if array.dtype == object:
            raise ValueError(f'{path}: {name} must hold numbers or strings, got Python objects')


def breaking_eps(verdicts: Verdicts) -> np.ndarray:
    """The smallest radius of the grid at which each example fell, [N].

    inf where it withstood all, 0 where it is wrong without an attack.
    """
    fallen = ~np.asarray(verdicts.acceptable)
    smallest = np.where(fallen.any(axis=0), np.asarray(verdicts.eps)[fallen.argmax(axis=0)], np.inf)
    return np.where(verdicts.withstood_clean, smallest, 0.0)
