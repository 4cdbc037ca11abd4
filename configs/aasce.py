"""68 corners of 17 vertebrae in spinal X-rays (AASCE) at 64 x 32 pixels, a small landmark U-Net.

    python -m experiments.train     --config=configs/aasce.py:natural --workdir=runs/aasce/natural/0
    python -m experiments.calibrate --config=configs/aasce.py:natural --workdir=runs/aasce/natural/0 \
        --calibration_split=val
    python -m experiments.train     --config=configs/aasce.py:amat --workdir=runs/aasce/amat/0 START
    python -m experiments.evaluate  --config=configs/aasce.py:amat --workdir=runs/aasce/amat/0 START

START is `--config.train.init_from=runs/aasce/natural/0 --config.task.calibrated_on=runs/aasce/natural/0`.

Errors are in percent of the image's height, and Cobb angles in degrees. On a GPU:
`--config.data.options.size="(512, 256)" --config.model.name=landmark_vgg19 --config.model.options.width=64`.
"""
from ml_collections import ConfigDict

from configs.base import base_config
from configs.dense_cpu import ADAPTIVE, for_images


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES; 'pgd_at' is what the papers on landmarks call SAT."""
    augment = (('affine', {'max_degrees': 5.0, 'max_scale': 0.1, 'max_pixels': 3.0}),
               ('intensity', {'brightness': 0.1, 'contrast': 0.2, 'gamma': 0.2}))
    config = for_images(base_config(defense, 'landmarks'), num_values=64 * 32, epochs=(40, 8),
                        augment=augment)
    config.data.name = 'aasce'
    config.data.options = ConfigDict({'size': (64, 32)})
    config.task.cobb_angles = True
    config.model.name = 'landmark_net'
    config.model.options = ConfigDict({'width': 16})
    if defense in ADAPTIVE:
        config.defense.min_margin = config.defense.delta
    config.eval.max_examples = 24
    return config
