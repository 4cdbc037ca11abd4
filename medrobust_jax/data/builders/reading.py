"""Reads any TFDS data set that holds an image and its targets per example, without TensorFlow.

Targets are one class, or what features are named as `data.source.TARGETS` says: 'segmentation' (an image of
classes), 'points', 'boxes' with 'box_labels' and 'box_mask', 'findings'. Names of their classes stand in the data
set's metadata as 'class_names'.

Contents: `TfdsSource`, `open_tfds`.

Data are read by random access from files in a random-access format; a data set is prepared in one
with `prepare=True`, or by `tfds.builder(name).download_and_prepare(file_format='array_record')`.

Example:

    source = open_tfds('medmnist/retinamnist', 'train', data_dir='~/data', prepare=True)
    source = open_tfds('patch_camelyon', 'test', label_key='label')
"""
import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from medrobust_jax.core import checks
from medrobust_jax.data import files
from medrobust_jax.data.builders import aasce, acdc, bccd, busi, medmnist, oct_phantom
from medrobust_jax.data.masks import resize_masks
from medrobust_jax.data.resize import Size, describe, resize_images, target_size
from medrobust_jax.data.source import TARGETS, Record, SourceInfo, check_values

# Importing a builder's module is what makes its name known to TFDS.
BUILDERS = (aasce.Aasce, acdc.Acdc, bccd.Bccd, busi.Busi, medmnist.Medmnist, oct_phantom.OctPhantom)
FOLDER = 'tensorflow_datasets'  # where prepared copies lie in the data directory


class TfdsSource:
    """A prepared TFDS split as a source; records are decoded and checked as they are read.

    Args:
      builder: a builder that was prepared in a random-access format.
      split: any split TFDS knows, e.g. 'train' or 'train[:80%]'; 'val' also finds 'validation'.
      size: resize to this; required where images differ in size.
      image_key: the feature that holds the image.
      label_key: the feature that holds the class; where it is absent, targets of other names are looked for.
      group_key: the feature that holds the patient, or None.
      max_value: of uint16 images, the raw value that becomes 1.

    Raises:
      ValueError: for absent splits or features, or images of unknown size without `size`.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, *, size: Size | None = None,
                 image_key: str = 'image', label_key: str = 'label', group_key: str | None = None,
                 max_value: int | None = None) -> None:
        split = _tfds_split(builder, split)
        features: Any = builder.info.features
        dense = [name for name in TARGETS if name in features] if label_key not in features else []
        if dense and group_key is None and 'group' in features:
            group_key = 'group'
        for key in (image_key, *(dense or [label_key]), *([group_key] if group_key else [])):
            if key not in features:
                checks.did_you_mean(key, features, f'feature of {builder.info.full_name}:')
        self._keys, self._dense = (image_key, label_key, group_key), dense
        self._size, self._max_value = size, max_value
        self._what = f'{builder.info.full_name}/{split}'
        shape = features[image_key].shape
        names = _class_names(builder, dense, label_key, self._what)
        if size is None and None in shape[:2]:
            raise ValueError(f'{self._what}: images have several sizes; give size=')
        image_shape = shape if size is None else (*target_size(size), shape[-1])
        raw = np.dtype(features[image_key].np_dtype)
        scales = {'uint8': 'uint8 / 255', 'uint16': f'uint16 / {max_value}'}
        range_map = scales.get(raw.name, f'{raw.name} as they are')
        if raw == np.uint16 and max_value is None:
            raise ValueError(f'{self._what}: 16-bit images need max_value=, the raw value that becomes 1')
        reader: Any = builder  # its signature is hidden by a decorator
        self._open = partial(reader.as_data_source, split=split)
        self._data = self._open()
        if len(self._data) == 0:
            raise ValueError(f'{self._what}: the split is empty')
        range_map += '' if size is None else describe(shape, size) or f', resized to {size}'
        self.info = SourceInfo(builder.info.full_name, split, len(names), names, tuple(image_shape),
                               range_map, _fingerprint(builder, split, range_map), group_key is not None)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> Record:
        record = self._data[int(row)]
        image_key, _, group_key = self._keys
        image = np.asarray(record[image_key])
        if self._size is not None:
            image = resize_images(image[None], self._size)[0]
        if np.issubdtype(image.dtype, np.integer):
            image = image.astype(np.float32) / np.float32(255 if image.dtype == np.uint8 else self._max_value)
        checks.check_images(image[None], what=self._what, first_index=int(row))
        found = {'image': image.astype(np.float32), **self._targets(record, int(row), self._dense)}
        if group_key is None:
            return found
        group = record[group_key].decode() if isinstance(record[group_key], bytes) else record[group_key]
        checks.check_groups([group], what=f'{self._what}: {group_key}', first_index=int(row))
        return {**found, 'group': group}

    def column(self, name: str) -> np.ndarray | None:
        """A target of all examples, `[N, ...]`, or None; their images are not decoded."""
        if name not in (self._dense or ('label',)):
            return None
        unread = {self._keys[0], *self._dense} - {name}
        records = self._open(decoders={each: tfds.decode.SkipDecoding() for each in unread})
        return np.stack([self._targets(records[row], row, (name,))[name] for row in range(len(self))])

    def _targets(self, record: Record, row: int, names: Sequence[str]) -> Record:
        if not self._dense:
            label = np.asarray(record[self._keys[1]], dtype=np.int32)
            checks.check_labels(label[None], self.info.num_classes, what=self._what, first_index=row)
            return {'label': label}
        found = {name: np.asarray(record[name]) for name in names}
        if 'segmentation' in found:
            mask = found['segmentation'].squeeze(-1) if found['segmentation'].ndim == 3 else found['segmentation']
            found['segmentation'] = mask if self._size is None else resize_masks(mask[None], self._size)[0]
        for name, values in found.items():
            check_values(name, values[None], self.info.num_classes, self._what, first_row=row)
        return {name: values.astype(TARGETS[name][1]) for name, values in found.items()}


def open_tfds(name: str, split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
              prepare: bool = False, size: Size | None = None, image_key: str = 'image',
              label_key: str = 'label', group_key: str | None = None,
              max_value: int | None = None) -> TfdsSource:
    """One split of a TFDS data set.

    Args:
      name: as TFDS spells it, e.g. 'colorectal_histology' or 'medmnist/retinamnist'.
      split: see `TfdsSource`.
      data_dir: prepared data are looked for here and in its folder tensorflow_datasets, then in
        TFDS's own default directory; None reads the environment.
      prepare: download and prepare the data where they are absent.
      size: see `TfdsSource`, as for the other arguments.
      image_key: see `TfdsSource`.
      label_key: see `TfdsSource`.
      group_key: see `TfdsSource`.
      max_value: see `TfdsSource`.

    Raises:
      FileNotFoundError: when the data were not prepared, saying where they were looked for.
      ValueError: for a name unknown to TFDS, and as `TfdsSource`.
    """
    directory = files.data_directory(data_dir)
    roots = [directory / FOLDER, directory] if directory else []
    roots.append(Path(constants.DATA_DIR).expanduser())
    try:
        builders = [tfds.builder(name, data_dir=root) for root in roots]
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(f"TFDS knows no data set '{name}': {str(error).splitlines()[0]}") from error
    ready = [builder for builder in builders if builder.is_prepared()]
    if not ready and prepare:
        builders[0].download_and_prepare(file_format='array_record')
        ready = builders[:1]
    if not ready:
        looked = '\n  '.join(str(builder.data_path) for builder in builders)
        raise FileNotFoundError(f"TFDS data set '{name}' is not prepared; looked for\n  {looked}\n"
                                'Prepare it with the option prepare=True')
    return TfdsSource(ready[0], split, size=size, image_key=image_key, label_key=label_key,
                      group_key=group_key, max_value=max_value)


def _class_names(builder: tfds.core.DatasetBuilder, dense: list[str], label_key: str, what: str
                 ) -> tuple[str, ...]:
    """The names of the classes, findings or points."""
    features: Any = builder.info.features
    if dense:
        named = (builder.info.metadata or {}).get('class_names')
        if named is None:
            raise ValueError(f"{what}: metadata lack 'class_names', names of what {', '.join(dense)} tell apart")
        return tuple(named)
    label: Any = features[label_key]
    if not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(f"{what}: feature '{label_key}' is a {type(label).__name__}, not a class")
    return tuple(label.names)


def _tfds_split(builder: tfds.core.DatasetBuilder, split: str) -> str:
    splits = list(builder.info.splits)
    base = split.partition('[')[0]
    if base == 'val' and 'val' not in splits and 'validation' in splits:
        return 'validation' + split[len('val'):]
    if base not in splits and '+' not in split:
        raise ValueError(f"{builder.info.full_name} has the splits {', '.join(splits)}; not '{split}'; parts are "
                         "written 'train[:90%]' and 'train[90%:]'")
    return split


def _fingerprint(builder: tfds.core.DatasetBuilder, split: str, range_map: str) -> str:
    """sha256 over the shards that the split is read from, and which of their examples."""
    digest = hashlib.sha256(range_map.encode())
    for part in builder.info.splits[split].file_instructions:
        digest.update(f'{part.skip}:{part.take}'.encode())
        with open(part.filename, 'rb') as stream:
            digest.update(hashlib.file_digest(stream, 'sha256').digest())
    return digest.hexdigest()
