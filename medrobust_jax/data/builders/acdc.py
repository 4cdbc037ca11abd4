"""TFDS builder of ACDC's slices, split by patient as in `medrobust_jax.data.acdc`.

Contents: `Acdc`.

The file comes from TFDS's manual directory or the data directory (MEDROBUST_DATA).

Example:

    builder = tfds.builder('acdc', data_dir='~/data/tensorflow_datasets')
    builder.download_and_prepare(file_format='array_record')

References:
  Bernard et al., IEEE TMI 37(11), 2018.
"""
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from medrobust_jax.data import acdc


class Acdc(tfds.core.GeneratorBasedBuilder):
    """ACDC slices at 160 pixels; the classes of 'segmentation' are background, RV, myocardium, LV."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 - TFDS reads a class attribute
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Put acdc_slices_160.npz here; medrobust_jax.data.acdc describes it.'

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description='Cardiac MR slices with right ventricle, myocardium and left ventricle.',
            disable_shuffling=True,  # rows in the order of the direct path
            metadata=tfds.core.MetadataDict(class_names=list(acdc.CLASS_NAMES)),
            features=tfds.features.FeaturesDict({
                'image': tfds.features.Image(shape=(160, 160, 1)),
                'segmentation': tfds.features.Image(shape=(160, 160, 1)),
                'group': np.int32}))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        try:
            path = acdc.locate(dl_manager.manual_dir)
        except (AssertionError, FileNotFoundError):  # no manual directory, or not in it
            path = acdc.locate(None)
        images, labels, patients, rows = acdc.read(path)
        return {split: self._generate_examples(images[chosen], labels[chosen], patients[chosen])
                for split, chosen in rows.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray,
                           patients: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (image, label, patient) in enumerate(zip(images, labels, patients, strict=True)):
            yield row, {'image': Image.fromarray(image[..., 0]), 'segmentation': Image.fromarray(label),
                        'group': int(patient)}
