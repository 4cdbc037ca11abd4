"""Pneumonia in pediatric chest X-rays (PneumoniaMNIST, 28 px, 2 classes), on a CPU.

    python -m experiments.train    --config=configs/pneumoniamnist.py:pgd_at --workdir=runs/pneumoniamnist/pgd_at/0
    python -m experiments.evaluate --config=configs/pneumoniamnist.py:pgd_at --workdir=runs/pneumoniamnist/pgd_at/0

The numbers to expect are in results/README.md.
"""
from ml_collections import ConfigDict

from configs.base import base_config
from configs.medmnist_cpu import for_cpu


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = for_cpu(base_config(defense))
    config.data.name = 'pneumoniamnist'
    config.data.augment = (('shift', {'max_pixels': 2}), ('flip_horizontal', {}))
    config.train.epochs = 12.0
    config.defense.warmup_epochs = 2.0
    return config
