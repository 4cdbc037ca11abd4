"""TFDS builder of AASCE 2019, cleaned and split as in `medrobust_jax.data.aasce`.

Contents: `Aasce`.

The files come from TFDS's manual directory or the data directory (MEDROBUST_DATA).

Example:

    builder = tfds.builder('aasce', data_dir='~/data/tensorflow_datasets')
    builder.download_and_prepare(file_format='array_record')

References:
  Wu, Bailey, Rasoulinejad, Li, BoostNet, MICCAI 2017; SpineWeb data set 16.
"""
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from medrobust_jax.data import aasce
from medrobust_jax.data.splits import SPLITS

SIZE = (256, 128)  # smaller sizes that divide it keep pixels square


class Aasce(tfds.core.GeneratorBasedBuilder):
    """AASCE at 256 x 128 pixels, proportions kept: train, val (15 % of the training patients), test."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 - TFDS reads a class attribute
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Put boostnet_labeldata here; medrobust_jax.data.aasce describes it.'

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description='Spinal X-rays with 68 corners of vertebrae; images with landmarks outside dropped.',
            supervised_keys=('image', 'points'),
            disable_shuffling=True,  # rows in the order of the direct path
            metadata=tfds.core.MetadataDict(class_names=list(aasce.POINT_NAMES)),
            features=tfds.features.FeaturesDict({
                'image': tfds.features.Image(shape=(*SIZE, 1)),
                'points': tfds.features.Tensor(shape=(len(aasce.POINT_NAMES), 2), dtype=np.float32),
                'group': tfds.features.Text()}))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        try:
            root = aasce.locate(dl_manager.manual_dir)
        except (AssertionError, FileNotFoundError):  # no manual directory, or not in it
            root = aasce.locate(None)
        return {split: self._generate_examples(aasce.split_rows(root, split)[0]) for split in SPLITS}

    def _generate_examples(self, rows: list[aasce.Row]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, row in enumerate(rows):
            image, points = aasce.frame(row.path, row.points, SIZE, 'pad')
            yield number, {'image': Image.fromarray(image), 'points': points, 'group': row.group}
