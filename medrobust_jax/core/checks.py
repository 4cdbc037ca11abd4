"""Refusals with a cure: the range contract of images, and misspelled names.

Contents: `check_images` (the contract that every attack relies on), `check_labels`, `check_groups`,
`check_eps`, `check_options`, `did_you_mean`.

Example:

    check_images(images, what='my test set')     # ValueError: my test set: image 17 holds NaN
    did_you_mean('pdg', ATTACKS, 'attack')       # ValueError: unknown attack 'pdg'; did you mean 'pgd'?
"""
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np

_MISSING = frozenset(('', 'None', 'nan', 'NaT', '<NA>', "b''"))


def check_images(images: Any, *, what: str = 'images', first_index: int = 0) -> None:
    """Raises unless `images` meet the data contract.

    The contract: floating point, shaped `[N, *spatial, C]` with one to three spatial axes, finite,
    and inside [0, 1]. Normalization belongs inside the model's forward function.

    Args:
      images: an array, on the host or a device; not a tracer.
      what: how the message names the images.
      first_index: the data set's index of `images[0]`, for the message.

    Raises:
      TypeError: for a dtype that is not floating point.
      ValueError: for the wrong rank, an empty array, or the first image that breaks the contract.
    """
    array = np.asarray(images)
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != 'bfloat16':
        raise TypeError(f'{what}: dtype {array.dtype} is not floating point; divide 8-bit images by 255 '
                        f'and 16-bit images by 65535 (or their stated maximum), so that they lie in [0, 1]')
    if array.ndim not in (3, 4, 5) or array.size == 0:
        raise ValueError(f'{what}: shape {array.shape} is not [batch, *spatial, channels] with 1 to 3 '
                         f'spatial axes and at least one image; add a channel axis to grey images')
    flat = array.reshape(len(array), -1)
    low, high = flat.min(axis=1), flat.max(axis=1)  # NaN propagates through both
    bad = np.flatnonzero(~((low >= 0) & (high <= 1)))
    if bad.size:
        row = int(bad[0])
        held = f'values in [{low[row]:.6g}, {high[row]:.6g}]' if np.isfinite(flat[row]).all() else 'NaN or inf'
        raise ValueError(f'{what}: image {first_index + row} holds {held} ({bad.size} of {len(array)} images '
                         f'break the contract); pixels must be finite and in [0, 1], with normalization '
                         f'inside the model')


def check_labels(labels: Any, num_classes: int, *, what: str = 'labels', first_index: int = 0) -> None:
    """Raises unless `labels` [N] are integers in [0, num_classes).

    Raises:
      TypeError: for a dtype that is not integer.
      ValueError: for the wrong rank, or the first label out of range, with its row.
    """
    array = np.asarray(labels)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f'{what}: dtype {array.dtype} is not an integer type')
    if array.ndim != 1:
        raise ValueError(f'{what}: shape {array.shape} is not [batch]; labels are class numbers, not one-hot rows')
    bad = np.flatnonzero((array < 0) | (array >= num_classes))
    if bad.size:
        raise ValueError(f'{what}: row {first_index + int(bad[0])} holds {array[bad[0]]}, outside '
                         f'0..{num_classes - 1} ({bad.size} such rows); change the labels or num_classes')


def check_groups(groups: Any, *, what: str = 'groups', first_index: int = 0) -> None:
    """Raises unless `groups` [N] name a patient in every row: rows without id would count as one patient.

    Raises:
      ValueError: for the first row that holds None, NaN or an empty text.
    """
    array = np.asarray(groups)
    if array.dtype.kind in 'iu':
        return
    # As text: NumPy makes a text of the NaN in ['p1', nan], and pandas has a missing value of its own.
    missing = [row for row, group in enumerate(array) if str(group) in _MISSING]
    if missing:
        raise ValueError(f"{what}: row {first_index + missing[0]} holds '{array[missing[0]]}', which is no id "
                         f'({len(missing)} such rows); give every row an id (its own, where the patient is '
                         f'unknown) or leave groups out')


def check_eps(eps: float | Sequence[float], *, field: str = 'eps') -> None:
    """Raises ValueError unless every radius is finite and not negative."""
    values = np.atleast_1d(np.asarray(eps, dtype=np.float64))
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f'{field} = {eps} must be finite and >= 0 (in units of [0, 1] pixels: 8/255 is 0.0314)')


def check_options(options: Iterable[str], known: Iterable[str], kind: str) -> None:
    """Raises ValueError for the first of `options` that is not `known`, suggesting the nearest."""
    known = tuple(known)
    for option in options:
        if option not in known:
            did_you_mean(option, known, kind)


def did_you_mean(name: str, known: Iterable[str], kind: str) -> NoReturn:
    """Raises ValueError for an unknown `name`, suggesting the nearest of `known`."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else '.'
    raise ValueError(f"unknown {kind} '{name}'{hint} Known: {', '.join(names)}")
