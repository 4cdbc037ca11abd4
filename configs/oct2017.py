"""Retinal OCT in four classes (Kermany's OCT2017) at 224 pixels with a ResNet-18, for a GPU.

    python -m experiments.train    --config=configs/few_labels.py:oct2017/natural FEW \\
        --workdir=runs/oct2017/natural_5/0
    python -m experiments.train    --config=configs/oct2017.py:ssat FEW START --workdir=runs/oct2017/ssat_5/0
    python -m experiments.evaluate --config=configs/oct2017.py:ssat FEW START --workdir=runs/oct2017/ssat_5/0

FEW is `--config.data.labeled_fraction=0.05`, START `--config.train.init_from=runs/oct2017/natural_5/0`: a net that
labels images for itself from drawn weights, or with long steps, calls all of them the same.

As in the published semi-supervised adversarial training: shorter side to 256, middle 224 x 224, no augmentation,
SGD with momentum .9, batch 64, 10 epochs [code]; for 'ssat' a learning rate of 1e-3 throughout and no weight decay
[code]. Ours: weights start at random, not from ImageNet, and therefore the learning rate of all others goes over
one cycle to .05, and 'ssat' starts from a natural run; validation patients are taken from the training split.
Baselines with few labels: `--config=configs/few_labels.py:oct2017/fgsm_at`.
"""
from ml_collections import ConfigDict

from configs.base import base_config, threat

PUBLISHED_EPS = tuple(round(0.0002 * k, 4) for k in range(1, 11))  # at which FGSM was run [code]
EPS = (0.0005, 0.001, 0.002, 1 / 255, 2 / 255, 4 / 255)


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = base_config(defense)
    config.data.name = 'oct2017'
    config.data.size = 224
    config.data.options = ConfigDict({'shorter_side': 256})
    config.model.name = 'resnet18'
    config.model.options = ConfigDict({'stem': 'large'})
    config.train.batch_size = 64
    config.train.epochs = 10.0
    config.optimizer.learning_rate = 0.05
    config.optimizer.nesterov = False
    if defense == 'ssat':
        config.optimizer.learning_rate, config.optimizer.schedule = 1e-3, 'constant'
        config.optimizer.weight_decay = 0.0
    config.validation.select_metric = 'balanced_accuracy' if defense == 'natural' else 'robust_balanced_accuracy'
    config.eval.eps = EPS
    config.eval.attacks.fgsm_published = threat('fgsm', eps=PUBLISHED_EPS)
    config.eval.block_width = 64
    config.eval.chunk = 256
    return config
