"""Random-access sources of images: the one thing a loader, an evaluation or a report reads.

Contents: `SourceInfo`, `Source` (the protocol), `ArraySource` (arrays in memory), `Subset`,
`read_batch` (several rows at once), `all_of`, `all_labels`, `gather` (everything, as arrays), `fingerprint`;
`TARGETS` (what an example may carry besides its image), `check_values`.

A source hands out images in [0, 1]; how raw values got there stands in `info.range_map`, and
what was read stands in `info.fingerprint`.

Example:

    source = ArraySource(images_uint8, labels, name='mine', class_names=('healthy', 'ill'))
    record = source[3]                                # {'image': float32 [H, W, C], 'label': int32}
    images, labels, groups = gather(Subset(source, range(10)))
"""
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from medrobust_jax.core import checks

Record = dict[str, Any]

# What a target is called, its axes (n for the example), and its dtype. Points and boxes are fractions of width
# and height: 0 is the left (top) edge of the first pixel, 1 the right (bottom) edge of the last.
TARGETS: dict[str, tuple[str, type]] = {
    'label': ('n', np.int32),  # the image's class
    'findings': ('n findings', np.int32),  # 0 or 1 for each
    'segmentation': ('n *spatial', np.int32),  # the class of every pixel, 0 is background
    'points': ('n points xy', np.float32),
    'boxes': ('n boxes x0,y0,x1,y1', np.float32),
    'box_labels': ('n boxes', np.int32),
    'box_mask': ('n boxes', np.bool_),  # False on rows that only fill up
}


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """What a source holds and where its numbers come from.

    Attributes:
      name: the data set, as configs spell it.
      split: 'train', 'val', 'test' or what the caller named.
      num_classes: labels (of images, pixels or boxes) are 0 ... num_classes - 1; the number of names.
      class_names: one name per class, in label order; of findings or points where these are named.
      image_shape: `(*spatial, channels)`, equal for all images.
      range_map: how raw values were mapped to [0, 1], in words.
      fingerprint: sha256 of images, labels, groups and the range map, as hexadecimal digits.
      has_groups: whether records carry 'group', the patient (or other unit) an image belongs to.
      notes: what was dropped or is known to be peculiar, one sentence each.
    """

    name: str
    split: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    range_map: str
    fingerprint: str
    has_groups: bool = False
    notes: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
    """Random access to examples.

    `source[i]` is a dict: 'image' float32 `[*spatial, C]` in [0, 1], the targets ('label' int32, or
    what `TARGETS` names), and 'group' where `info.has_groups`. A source may also offer
    `batch(rows [n]) -> dict` of stacked arrays; `read_batch` uses it where it exists, and `column(name)`,
    one target of all examples, which `all_of` uses.
    """

    info: SourceInfo

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Record: ...


class ArraySource:
    """Images and labels held in memory, in the dtype they came in; converted when read.

    uint8 is divided by 255 and uint16 by `max_value`; floats must lie in [0, 1] already.

    Args:
      images: `[N, *spatial, C]`, uint8, uint16 or floating point.
      targets: labels `[N]` or `[N, 1]`, integers in [0, len(class_names)); or a dict of arrays with leading
        axis N, named as in `TARGETS`.
      name: the data set's name, used in messages and records.
      class_names: one name per class.
      split: the split's name. In 'train' every class needs an example.
      groups: `[N]` patient ids (integers or text), one in every row, or None.
      channels: the number of channels that the caller expects; None allows 1 and 3.
      max_value: the raw value that becomes 1; required for uint16, refused otherwise.
      range_map: how raw values were mapped, where the caller did it; a default describes the above.
      notes: peculiarities to report with the data.

    Raises:
      TypeError: for images that are neither uint8, uint16 nor floating point, or fractional labels.
      ValueError: for values outside [0, 1], NaN, inf, wrong shapes or channels, labels out of
        range, no images at all, a class without training examples, or a row without id among groups.
    """

    def __init__(self, images: Any, targets: Any, *, name: str, class_names: Sequence[str],
                 split: str = 'train', groups: Any = None, channels: int | None = None,
                 max_value: int | None = None, range_map: str | None = None,
                 notes: Sequence[str] = ()) -> None:
        what = f'{name}/{split}'
        self._images = np.asarray(images)
        _check_layout(self._images, channels, what)
        self._max_value, default_map = _max_value(self._images, max_value, what)
        targets = dict(targets) if isinstance(targets, Mapping) else {'label': targets}
        if 'label' in targets:
            targets['label'] = _check_labels(targets['label'], len(self._images), tuple(class_names), split, what)
        self._targets = _check_targets(targets, self._images, len(class_names), what)
        self._groups = None if groups is None else np.asarray(groups)
        if self._groups is not None and self._groups.shape != (len(self._images),):
            raise ValueError(f'{what}: groups of shape {self._groups.shape} for {len(self._images)} images; '
                             'one id per image is needed')
        if self._groups is not None:
            checks.check_groups(self._groups, what=f'{what}: groups')
            if self._groups.dtype == object:  # a column of a pandas table; objects have no bytes to fingerprint
                self._groups = np.asarray([str(group) for group in self._groups])
        range_map = range_map or default_map
        self.info = SourceInfo(
            name=name, split=split, num_classes=len(class_names), class_names=tuple(class_names),
            image_shape=self._images.shape[1:], range_map=range_map,
            fingerprint=fingerprint(self._images, *self._fingerprinted(), self._groups, range_map),
            has_groups=self._groups is not None, notes=tuple(notes))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Record:
        if not -len(self) <= row < len(self):
            raise IndexError(f'{self.info.name}/{self.info.split}: row {row} of {len(self)}')
        return {name: column[0] for name, column in self.batch(np.asarray([row])).items()}

    def _fingerprinted(self) -> list[Any]:
        """The targets by name; labels alone stand without one."""
        if set(self._targets) == {'label'}:
            return [self._targets['label']]
        return [part for name in sorted(self._targets) for part in (name, self._targets[name])]

    def column(self, name: str) -> np.ndarray | None:
        """A target of all examples, `[N, ...]`, or None where the source has none of this name."""
        return self._targets.get(name)

    def batch(self, rows: np.ndarray) -> Record:
        """The records of several rows, stacked; `rows` [n] are integers."""
        # A division, not a product with 1 / 255: the largest raw value must become 1 exactly.
        images = self._images[rows].astype(np.float32) / np.float32(self._max_value)
        record = {'image': images}
        for name, values in self._targets.items():
            record[name] = values[rows].astype(TARGETS[name][1])
        if self._groups is not None:
            record['group'] = self._groups[rows]
        return record


class Subset:
    """Some rows of another source, in the given order.

    Args:
      source: where the rows come from.
      rows: `[n]` integers in [0, len(source)).
      split: the subset's own split name; None keeps the source's.
    """

    def __init__(self, source: Source, rows: Iterable[int], *, split: str | None = None) -> None:
        self._source = source
        self._rows = np.asarray(list(rows), dtype=np.int64)
        if self._rows.size == 0:
            raise ValueError(f'{source.info.name}: an empty subset of split {source.info.split}')
        bad = self._rows[(self._rows < 0) | (self._rows >= len(source))]
        if bad.size:
            raise ValueError(f'{source.info.name}/{source.info.split}: row {bad[0]} of {len(source)}')
        digest = hashlib.sha256(source.info.fingerprint.encode() + self._rows.tobytes()).hexdigest()
        self.info = dataclasses.replace(source.info, split=split or source.info.split, fingerprint=digest)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Record:
        return self._source[int(self._rows[row])]

    def column(self, name: str) -> np.ndarray | None:
        """A target of the subset's examples, `[n, ...]`, or None."""
        values = all_of(self._source, name)
        return None if values is None else values[self._rows]

    def batch(self, rows: np.ndarray) -> Record:
        """The records of several rows of the subset, stacked."""
        return read_batch(self._source, self._rows[rows])


def read_batch(source: Source, rows: Any) -> Record:
    """The records of `rows` [n], stacked: 'image' `[n, *spatial, C]`, 'label' `[n]`, maybe 'group'."""
    rows = np.asarray(rows, dtype=np.int64)
    if hasattr(source, 'batch'):
        return source.batch(rows)  # type: ignore[attr-defined]
    records = [source[int(row)] for row in rows]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def all_of(source: Source, name: str) -> np.ndarray | None:
    """One target of all examples, `[N, ...]`, or None where there is none; images stay as they are if possible."""
    if hasattr(source, 'column'):
        return source.column(name)  # type: ignore[attr-defined]
    if name not in source[0]:
        return None
    return np.asarray([source[row][name] for row in range(len(source))], dtype=TARGETS[name][1])


def all_labels(source: Source) -> np.ndarray:
    """All labels, int32 `[N]`.

    Raises:
      ValueError: where the examples have no single label.
    """
    labels = all_of(source, 'label')
    if labels is None:
        raise ValueError(f'{source.info.name}/{source.info.split} has no label per image, which class-balanced '
                         'sampling (config.data.class_balanced) and class-wise splits need')
    return labels


def gather(source: Source) -> tuple[np.ndarray, Any, np.ndarray | None]:
    """Everything in a source.

    Returns:
      `(images float32 [N, *spatial, C], targets, groups [N] or None)`; targets are the one array `[N, ...]` where
      examples carry one target (labels, say), else a dict of them.
    """
    targets = read_batch(source, np.arange(len(source)))
    images, groups = targets.pop('image'), targets.pop('group', None)
    return images, next(iter(targets.values())) if len(targets) == 1 else targets, groups


def fingerprint(*parts: Any) -> str:
    """sha256 over arrays (values, dtype, shape) and texts, in order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f'{part.dtype.str}{part.shape}'.encode())
            digest.update(np.ascontiguousarray(part).view(np.uint8).data if part.size else b'')
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def _check_layout(images: np.ndarray, channels: int | None, what: str) -> None:
    """Raises for an empty array, a missing channel axis or the wrong number of channels."""
    if images.shape[:1] == (0,):
        raise ValueError(f'{what}: the split is empty')
    if images.ndim not in (4, 5):
        raise ValueError(f'{what}: images of shape {images.shape} are not [N, *spatial, channels]; '
                         'add a channel axis to grey images: images[..., None]')
    allowed = (1, 3) if channels is None else (channels,)
    if images.shape[-1] not in allowed:
        expected = ' or '.join(map(str, allowed))
        raise ValueError(f'{what}: {images.shape[-1]} channels in images of shape {images.shape}, '
                         f'expected {expected}; state another number with channels=')


def _max_value(images: np.ndarray, max_value: int | None, what: str) -> tuple[int, str]:
    """The raw value that becomes 1, and the map in words."""
    if images.dtype == np.uint16:
        if max_value is None or not 0 < max_value <= 65535:
            raise ValueError(f'{what}: 16-bit images need max_value=, the raw value that becomes 1 '
                             f'(65535 for the full range, 4095 for 12-bit data); it is {max_value}')
        above = np.flatnonzero(images.reshape(len(images), -1).max(axis=1) > max_value)
        if above.size:
            raise ValueError(f'{what}: image {above[0]} holds {images[above[0]].max()}, '
                             f'above max_value = {max_value}')
        return max_value, f'uint16 / {max_value}'
    if max_value is not None:
        raise ValueError(f'{what}: max_value is for uint16 images; these are {images.dtype}')
    if images.dtype == np.uint8:
        return 255, 'uint8 / 255'
    checks.check_images(images, what=what)
    return 1, 'floats taken as they are, checked to lie in [0, 1]'


def _check_labels(labels: Any, num_images: int, class_names: tuple[str, ...], split: str,
                  what: str) -> np.ndarray:
    """Labels as int32 [N], or an error naming the row."""
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:  # MedMNIST writes [N, 1]
        array = array[:, 0]
    if array.ndim == 2:
        raise ValueError(f'{what}: labels of shape {array.shape} look like several labels per image; '
                         'a source holds one class per image')
    if array.shape != (num_images,):
        raise ValueError(f'{what}: labels of shape {array.shape} for {num_images} images')
    checks.check_labels(array, len(class_names), what=f'{what}: labels')
    counts = np.bincount(array.astype(np.int64), minlength=len(class_names))
    if split == 'train' and (counts == 0).any():
        missing = ', '.join(f'{label} ({class_names[label]})' for label in np.flatnonzero(counts == 0))
        raise ValueError(f'{what}: no training example of class {missing}; drop the class from class_names '
                         'or add images')
    return array.astype(np.int32)


def _check_targets(targets: Record, images: np.ndarray, num_classes: int, what: str) -> Record:
    """Targets in a small dtype that loses nothing, or an error naming the row.

    Raises:
      ValueError: for an unknown name, a wrong shape, or a value that cannot be.
    """
    if not targets:
        raise ValueError(f'{what}: there are no targets')
    checked = {}
    for name, values in targets.items():
        if name not in TARGETS:
            checks.did_you_mean(name, TARGETS, f'target of {what}:')
        axes, dtype = TARGETS[name]
        array = np.asarray(values)
        shape = (len(images), *images.shape[1:-1]) if name == 'segmentation' else array.shape
        rank = len(shape) if name == 'segmentation' else len(axes.split())
        if array.ndim != rank or len(array) != len(images) or array.shape != shape:
            raise ValueError(f'{what}: {name} of shape {array.shape} for images of shape {images.shape}; '
                             f'expected [{axes}]')
        check_values(name, array, num_classes, what)
        small = name in ('segmentation', 'box_labels', 'findings') and num_classes <= 255
        checked[name] = array.astype(np.uint8 if small else dtype)
    return checked


def check_values(name: str, values: np.ndarray, num_classes: int, what: str, *, first_row: int = 0) -> None:
    """Raises for values [n, ...] that a target of this name cannot have; the row, from `first_row`, is named."""
    flat = values.reshape(len(values), -1)
    if name in ('points', 'boxes'):
        bad, rule = ~np.isfinite(flat), 'finite numbers'
    elif name in ('findings', 'box_mask'):
        bad, rule = (flat != 0) & (flat != 1), '0 or 1'
    else:
        bad = (flat != np.round(flat)) | (flat < 0) | (flat >= num_classes)
        rule = f'classes 0 to {num_classes - 1}'
    rows = np.flatnonzero(bad.any(axis=1))
    if rows.size:
        value = flat[rows[0]][bad[rows[0]]][0]
        raise ValueError(f'{what}: {name} of row {first_row + rows[0]} holds {value}; expected {rule}')
