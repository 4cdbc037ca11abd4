"""MedMNIST at 28 pixels with a ResNet-18 and the survey's schedule, for one GPU or TPU board.

    python -m experiments.train    --config=configs/resnet18_gpu.py:trades --workdir=runs/gpu
    python -m experiments.evaluate --config=configs/resnet18_gpu.py:trades --workdir=runs/gpu

RetinaMNIST unless --config.data.name says otherwise. The survey's training: SGD, one-cycle to .01 over 100 epochs,
weight decay 1e-3, batch 32, class-balanced sampling, PGD-10, beta 6. Any data set works, e.g.
--config.data.name=folder:my_images --config.data.size=224 --config.model.options.stem=large.
"""
from ml_collections import ConfigDict

from configs.base import base_config, threat


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = base_config(defense)
    config.data.name = 'retinamnist'
    config.data.class_balanced = True
    config.data.augment = (('flip_horizontal', {}), ('shift', {'max_pixels': 2}))
    config.model.name = 'resnet18'
    config.model.options = ConfigDict({'stem': 'small'})
    config.train.batch_size = 32
    config.train.epochs = 100.0
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 1e-3
    config.optimizer.nesterov = False
    config.eval.block_width = 256
    config.eval.chunk = 512
    config.eval.attacks.pgd100 = threat('pgd', num_restarts=10, num_steps=100)
    return config
