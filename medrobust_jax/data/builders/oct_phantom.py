"""TFDS builder of the procedurally drawn OCT phantoms; it needs no download.

Contents: `OctPhantomConfig`, `OctPhantom`.

Example:

    builder = tfds.builder('oct_phantom/48', data_dir='~/data/tensorflow_datasets')
    builder.download_and_prepare(file_format='array_record')
"""
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from medrobust_jax.data import phantoms


@dataclasses.dataclass
class OctPhantomConfig(tfds.core.BuilderConfig):
    """Scans of `size` pixels drawn from `seed`; `num_examples` None means the defaults."""

    size: int = 32
    seed: int = 0
    num_examples: int | None = None


class OctPhantom(tfds.core.GeneratorBasedBuilder):
    """Four classes of OCT-like scans, see `medrobust_jax.data.phantoms`."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First version.'}  # noqa: RUF012 - TFDS reads a class attribute
    BUILDER_CONFIGS = [OctPhantomConfig(name=str(size), size=size) for size in (32, 48, 64)]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        config: Any = self.builder_config
        size = config.size
        return self.dataset_info_from_configs(
            description='Procedurally drawn retinal scans for tests and demonstrations.',
            supervised_keys=('image', 'label'),
            disable_shuffling=True,  # rows in the order of the direct path
            features=tfds.features.FeaturesDict({
                'image': tfds.features.Image(shape=(size, size, 1)),
                'label': tfds.features.ClassLabel(names=list(phantoms.CLASS_NAMES))}))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in phantoms.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config: Any = self.builder_config
        stream, default = phantoms.SPLITS[split]
        labels = np.arange(config.num_examples or default) % len(phantoms.CLASS_NAMES)
        images = phantoms.render(labels, seed=config.seed, stream=stream, size=config.size)
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield row, {'image': Image.fromarray(image[..., 0]), 'label': int(label)}
