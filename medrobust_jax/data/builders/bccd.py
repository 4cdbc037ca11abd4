"""TFDS builder of BCCD, cleaned as in `medrobust_jax.data.bccd`.

Contents: `Bccd`.

The folder comes from TFDS's manual directory or the data directory (MEDROBUST_DATA). Boxes are stored as in a
source: (x_min, y_min, x_max, y_max) in fractions, padded to one number, with 'box_mask'.

Example:

    builder = tfds.builder('bccd', data_dir='~/data/tensorflow_datasets')
    builder.download_and_prepare(file_format='array_record')
    builder.as_data_source('train')[0]['boxes']

References:
  Shenggan and others, BCCD Dataset, MIT license, https://github.com/Shenggan/BCCD_Dataset.
"""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from medrobust_jax.data import bccd
from medrobust_jax.data.boxes import pack
from medrobust_jax.data.splits import SPLITS
from medrobust_jax.data.voc import read_split

MAX_BOXES = 30  # the most that an image of BCCD has


class Bccd(tfds.core.GeneratorBasedBuilder):
    """BCCD at 480 x 640 pixels, official splits, two boxes without area dropped."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 - TFDS reads a class attribute
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Put the folder BCCD here; medrobust_jax.data.bccd describes it.'

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=f"Blood smears with boxes; box_labels: {', '.join(bccd.CLASS_NAMES)}.",
            disable_shuffling=True,  # rows in the order of the direct path
            metadata=tfds.core.MetadataDict(class_names=list(bccd.CLASS_NAMES)),
            features=tfds.features.FeaturesDict({
                'image': tfds.features.Image(shape=(480, 640, 3)),
                'boxes': tfds.features.Tensor(shape=(MAX_BOXES, 4), dtype=np.float32),
                'box_labels': tfds.features.Tensor(shape=(MAX_BOXES,), dtype=np.int32),
                'box_mask': tfds.features.Tensor(shape=(MAX_BOXES,), dtype=np.bool_)}))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        try:
            root = bccd.locate(dl_manager.manual_dir)
        except (AssertionError, FileNotFoundError):  # no manual directory, or not in it
            root = bccd.locate(None)
        return {split: self._generate_examples(root, split) for split in SPLITS}

    def _generate_examples(self, root: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images, objects, _, _ = read_split(root, split, class_names=bccd.CLASS_NAMES, drop_empty=True)
        targets = pack(objects)
        padding = MAX_BOXES - targets['box_mask'].shape[1]
        for row, image in enumerate(images):
            padded = {name: np.pad(values[row], ((0, padding), *((0, 0),) * (values.ndim - 2)))
                      for name, values in targets.items()}
            yield row, {'image': Image.fromarray(image), **padded}
