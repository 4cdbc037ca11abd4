"""TFDS builder of the MedMNIST 2-D family.

Contents: `MedmnistConfig`, `Medmnist`.

Files come from TFDS's manual directory, else from the data directory (MEDROBUST_DATA), else are
downloaded from the official record. Names and sizes are those of `medrobust_jax.data.medmnist`,
which also reads the same files without preparing a copy.

Example:

    builder = tfds.builder('medmnist/retinamnist_64', data_dir='~/data/tensorflow_datasets')
    builder.download_and_prepare(file_format='array_record')
    source = builder.as_data_source('train')

References:
  Yang et al., MedMNIST v2, Scientific Data 10:41, 2023, doi:10.1038/s41597-022-01721-8.
"""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from medrobust_jax.data import medmnist
from medrobust_jax.data.splits import SPLITS


class MedmnistConfig(tfds.core.BuilderConfig):
    """One data set at one size; `name` is e.g. 'pathmnist' or 'pathmnist_64'."""


class Medmnist(tfds.core.GeneratorBasedBuilder):
    """MedMNIST, one config per data set and size."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 - TFDS reads a class attribute
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Optional: put <name>.npz here to prepare without a download.'
    BUILDER_CONFIGS = [  # noqa: RUF012
        MedmnistConfig(name=base if pixels == 28 else f'{base}_{pixels}')
        for base in medmnist.DATASETS for pixels in medmnist.SIZES]

    @property
    def _name(self) -> str:
        config: Any = self.builder_config
        return config.name

    def _info(self) -> tfds.core.DatasetInfo:
        base, pixels = medmnist.parse_name(self._name)
        dataset = medmnist.DATASETS[base]
        target = medmnist.target_name(self._name)
        names = list(dataset.class_names)
        feature = (tfds.features.Tensor(shape=(len(names),), dtype=np.uint8) if dataset.multi_label
                   else tfds.features.ClassLabel(names=names))
        return self.dataset_info_from_configs(
            description=f'MedMNIST v2, {base} at {pixels} pixels. {dataset.note}',
            homepage='https://medmnist.com/',
            supervised_keys=('image', target),
            disable_shuffling=True,  # rows in the order of the direct path
            metadata=tfds.core.MetadataDict(class_names=names),
            features=tfds.features.FeaturesDict({
                'image': tfds.features.Image(shape=(pixels, pixels, dataset.channels)),
                target: feature}))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        path = self._locate(dl_manager)
        return {split: self._generate_examples(path, split) for split in SPLITS}

    def _locate(self, dl_manager: tfds.download.DownloadManager) -> Path:
        for directory in (_manual_directory(dl_manager), None):
            try:
                return medmnist.locate(self._name, directory)
            except FileNotFoundError:
                continue
        return Path(dl_manager.download(medmnist.URL.format(file=medmnist.file_name(self._name))))

    def _generate_examples(self, path: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = medmnist.read_split(path, self._name, split)
        target = medmnist.target_name(self._name)
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            # PIL images are encoded without TensorFlow; arrays are not.
            yield row, {'image': Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image),
                        target: label if label.ndim else int(label)}


def _manual_directory(dl_manager: tfds.download.DownloadManager) -> Path | None:
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS's way of saying that it is absent
        return None
