"""Diabetic retinopathy grades from fundus photographs (RetinaMNIST, 28 px, 5 classes), on a CPU.

    python -m experiments.train    --config=configs/retinamnist.py:trades --workdir=runs/retinamnist/trades/0
    python -m experiments.evaluate --config=configs/retinamnist.py:trades --workdir=runs/retinamnist/trades/0

The numbers to expect are in results/README.md.
"""
from ml_collections import ConfigDict

from configs.base import base_config
from configs.medmnist_cpu import for_cpu


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = for_cpu(base_config(defense))
    config.data.name = 'retinamnist'
    config.data.augment = (('shift', {'max_pixels': 2}), ('flip_horizontal', {}), ('flip_vertical', {}))
    config.train.epochs = 30.0
    config.defense.warmup_epochs = 4.0
    return config
