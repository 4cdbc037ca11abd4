"""Fourteen findings in chest X-rays (ChestMNIST) at 28 pixels, several at once; ResNet of 8 layers.

    python -m experiments.train    --config=configs/chestmnist.py:pgd_at --workdir=runs/chestmnist/pgd_at/0
    python -m experiments.evaluate --config=configs/chestmnist.py:pgd_at --workdir=runs/chestmnist/pgd_at/0

Without the file, on drawn X-rays of five findings: `--config.data.name=chest_phantom`. The original
radiographs (ChestX-ray14) with a DenseNet-121: `--config.data.name=chest --config.data.size=224
--config.model.name=densenet121 --config.model.options.stage_sizes="(6,12,24,16)" --config.model.options.width=64
--config.model.options.stem=large`.
"""
from ml_collections import ConfigDict

from configs.base import base_config


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = base_config(defense, 'multilabel')
    config.data.name = 'chestmnist'
    config.task.tolerance = 2  # of 14 a good model gets one wrong on most images
    config.model.name = 'resnet'
    config.model.options = ConfigDict({'stage_sizes': (1, 1, 1), 'width': 32, 'stem': 'strided'})
    config.defense.warmup_epochs = 2.0
    config.train.epochs = 10.0
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 3e-3
    config.validation.select_metric = 'score' if defense == 'natural' else 'robust_score'
    config.eval.max_examples = 1000
    return config
