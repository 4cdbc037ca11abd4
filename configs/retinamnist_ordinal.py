"""Diabetic retinopathy as ordinal grades (RetinaMNIST, 28 px, 5 grades, 4 cumulative logits), on a CPU.

    python -m experiments.train    --config=configs/retinamnist_ordinal.py:pgd_at \\
        --workdir=runs/ordinal/pgd_at/0
    python -m experiments.evaluate --config=configs/retinamnist_ordinal.py:pgd_at \\
        --workdir=runs/ordinal/pgd_at/0

`--config.task.tolerance=1` accepts a grade that is off by one. Quadratic-weighted kappa is among the metrics.
"""
from ml_collections import ConfigDict

from configs import retinamnist


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = retinamnist.get_config(defense)
    config.task.name = 'ordinal'
    return config
