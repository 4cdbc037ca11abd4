"""Normal, benign and malignant breast ultrasound (BUSI, 3 classes) at 64 pixels, ResNet-18.

    python -m experiments.train    --config=configs/busi.py:pgd_at --workdir=runs/busi/pgd_at/0
    python -m experiments.evaluate --config=configs/busi.py:pgd_at --workdir=runs/busi/pgd_at/0

`--config.data.size=128` trains at 128 pixels. For a GPU; on a CPU name a smaller net, e.g.
`--config.model.name=resnet10`.
"""
from ml_collections import ConfigDict

from configs.base import base_config


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = base_config(defense)
    natural = defense == 'natural'
    config.data.name = 'busi'
    config.data.size = 64
    config.data.class_balanced = True
    config.data.augment = (('flip_horizontal', {}), ('affine', {'max_degrees': 10.0, 'max_scale': 0.1}))
    config.model.name = 'resnet18'
    config.model.options = ConfigDict({'stem': 'strided'})
    config.defense.warmup_epochs = 8.0
    config.train.batch_size = 64
    config.train.epochs = 60.0
    config.validation.select_metric = 'balanced_accuracy' if natural else 'robust_balanced_accuracy'
    return config
