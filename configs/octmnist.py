"""Retinal OCT in four classes (OCTMNIST, 28 px), on a CPU: the benchmark of semi-supervised training, made small.

    python -m experiments.train    --config=configs/few_labels.py:octmnist/natural FEW \\
        --workdir=runs/octmnist/natural_5/0
    python -m experiments.train    --config=configs/octmnist.py:ssat FEW START --workdir=runs/octmnist/ssat_5/0
    python -m experiments.evaluate --config=configs/octmnist.py:ssat FEW START --workdir=runs/octmnist/ssat_5/0

FEW is `--config.data.labeled_fraction=0.05`, START `--config.train.init_from=runs/octmnist/natural_5/0` (see
configs/medmnist_cpu.py). Baselines with few labels: `--config=configs/few_labels.py:octmnist/fgsm_at`. The
originals at 224 pixels: configs/oct2017.py. The 97,477 training images make an epoch ten times as long as that of
the other small sets; the image is not flipped upside down, since layers of the retina have an order.
"""
from ml_collections import ConfigDict

from configs.base import base_config, threat
from configs.medmnist_cpu import for_cpu
from configs.oct2017 import EPS, PUBLISHED_EPS


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = for_cpu(base_config(defense))
    config.data.name = 'octmnist'
    config.data.augment = (('shift', {'max_pixels': 2}), ('flip_horizontal', {}))
    config.train.epochs = 3.0
    config.train.eval_every_epochs = 0.5
    config.train.checkpoint_every_epochs = 0.5
    config.defense.warmup_epochs = 0.5
    config.eval.eps = EPS
    config.eval.attacks.fgsm_published = threat('fgsm', eps=PUBLISHED_EPS)
    return config
