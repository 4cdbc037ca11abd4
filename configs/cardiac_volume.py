"""Cardiac structures in drawn volumes of 32 x 32 x 32, a small 3-D U-Net, no download.

    python -m experiments.train     --config=configs/cardiac_volume.py:natural --workdir=runs/volume/natural/0
    python -m experiments.calibrate --config=configs/cardiac_volume.py:natural --workdir=runs/volume/natural/0
    python -m experiments.train     --config=configs/cardiac_volume.py:amat --workdir=runs/volume/amat/0 START
    python -m experiments.evaluate  --config=configs/cardiac_volume.py:amat --workdir=runs/volume/amat/0 START

START is `--config.train.init_from=runs/volume/natural/0 --config.task.calibrated_on=runs/volume/natural/0`.

Volumes of a task of the Medical Segmentation Decathlon, for whoever has the files, on a GPU:
`--config.data.name=msd_volumes:Task02_Heart --config.data.size=96 --config.model.options.width=32
--config.model.options.depth=4`; radii grow with the square root of the volume.
"""
from ml_collections import ConfigDict

from configs.base import base_config
from configs.dense_cpu import for_images


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    augment = (('intensity', {'brightness': 0.1, 'contrast': 0.2, 'gamma': 0.2}),)
    config = for_images(base_config(defense, 'segmentation'), num_values=32**3, epochs=(40, 6),
                        augment=augment)
    config.data.name = 'cardiac_volume'
    config.data.size = 32
    config.model.name = 'unet'
    config.model.options = ConfigDict({'num_spatial_dims': 3, 'width': 8, 'depth': 3})
    config.train.batch_size = 4
    config.eval.max_examples = 20
    config.eval.block_width = 2
    config.eval.chunk = 4
    return config
