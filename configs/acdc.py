"""Cardiac structures in MR slices (ACDC) at 64 pixels, a small U-Net: minutes to an hour on two cores.

    python -m experiments.train     --config=configs/acdc.py:natural --workdir=runs/acdc/natural/0
    python -m experiments.calibrate --config=configs/acdc.py:natural --workdir=runs/acdc/natural/0
    python -m experiments.train     --config=configs/acdc.py:amat --workdir=runs/acdc/amat/0 START
    python -m experiments.evaluate  --config=configs/acdc.py:amat --workdir=runs/acdc/amat/0 START

START is `--config.train.init_from=runs/acdc/natural/0 --config.task.calibrated_on=runs/acdc/natural/0`.

What they reach stands in results/README.md. For the published kind of network on a GPU:
`--config.data.size=160 --config.model.options.width=32 --config.model.options.depth=5`.
"""
from ml_collections import ConfigDict

from configs.base import base_config
from configs.dense_cpu import for_images


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES; 'pgd_at' is what the papers on segmentation call SAT."""
    augment = (('affine', {'max_degrees': 15.0, 'max_scale': 0.15, 'max_pixels': 4.0}),
               ('intensity', {'brightness': 0.1, 'contrast': 0.2, 'gamma': 0.2}))
    config = for_images(base_config(defense, 'segmentation'), num_values=64 * 64, epochs=(20, 3),
                        augment=augment)
    config.data.name = 'acdc'
    config.data.size = 64
    config.model.name = 'unet'
    config.model.options = ConfigDict({'width': 16, 'depth': 3})
    config.eval.max_examples = 20
    return config
