"""Ten classes of generated CT-like organs, 28 px, no download: what AutoAttack's nine targets need.

    python -m experiments.train    --config=configs/organ_phantom.py:pgd_at --workdir=runs/organ_phantom/pgd_at/0
    python -m experiments.evaluate --config=configs/organ_phantom.py:pgd_at --workdir=runs/organ_phantom/pgd_at/0 \
        --config.eval.ensemble=autoattack

The net is that of configs/medmnist_cpu.py: minutes on two cores.
"""
from ml_collections import ConfigDict

from configs.base import base_config
from configs.medmnist_cpu import for_cpu


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = for_cpu(base_config(defense))
    config.data.name = 'organ_phantom'
    config.data.class_balanced = False  # classes are of equal size
    config.data.augment = (('shift', {'max_pixels': 2}),)
    config.defense.warmup_epochs = 5.0
    config.train.epochs = 20.0
    config.eval.max_examples = 400
    return config
