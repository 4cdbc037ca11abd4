"""TFDS builder of BUSI, cleaned and split as in `medrobust_jax.data.busi`.

Contents: `Busi`.

The file comes from TFDS's manual directory or the data directory (MEDROBUST_DATA).

Example:

    builder = tfds.builder('busi', data_dir='~/data/tensorflow_datasets')
    builder.download_and_prepare(file_format='array_record')

References:
  Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28:104863, 2020.
"""
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from medrobust_jax.data import busi


class Busi(tfds.core.GeneratorBasedBuilder):
    """BUSI at 160 pixels: 70 % train, 10 % val, 20 % test, split seed 0."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 - TFDS reads a class attribute
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Put busi_160.npz here; medrobust_jax.data.busi describes it.'

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description='Breast ultrasound, normal, benign and malignant; images under two labels dropped.',
            supervised_keys=('image', 'label'),
            disable_shuffling=True,  # rows in the order of the direct path
            features=tfds.features.FeaturesDict({
                'image': tfds.features.Image(shape=(160, 160, 1)),
                'label': tfds.features.ClassLabel(names=list(busi.CLASS_NAMES))}))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        try:
            path = busi.locate(dl_manager.manual_dir)
        except (AssertionError, FileNotFoundError):  # no manual directory, or not in it
            path = busi.locate(None)
        images, labels, rows, _ = busi.read(path)
        return {split: self._generate_examples(images[chosen], labels[chosen]) for split, chosen in rows.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield row, {'image': Image.fromarray(image[..., 0]), 'label': int(label)}
