"""Malignant lesions in breast ultrasound (BreastMNIST, 28 px, 2 classes), on a CPU.

    python -m experiments.train    --config=configs/breastmnist.py:pgd_at --workdir=runs/breastmnist/pgd_at/0
    python -m experiments.evaluate --config=configs/breastmnist.py:pgd_at --workdir=runs/breastmnist/pgd_at/0

Its 156 test images alone mean intervals of about 8 points; it is made from BUSI, so the two are not independent.
"""
from ml_collections import ConfigDict

from configs.base import base_config
from configs.medmnist_cpu import for_cpu


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = for_cpu(base_config(defense))
    config.data.name = 'breastmnist'
    config.data.augment = (('shift', {'max_pixels': 2}), ('flip_horizontal', {}))
    config.train.batch_size = 64
    config.train.epochs = 60.0
    config.defense.warmup_epochs = 8.0
    return config
