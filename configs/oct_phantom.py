"""The demo: four classes of generated OCT-like scans, 32 px, no download.

    python -m experiments.demo --workdir=demo
    python -m experiments.train --config=configs/oct_phantom.py:pgd_at --workdir=runs/oct_phantom/pgd_at/0

Two models in under four minutes on two cores; what they reach stands in README.md.
"""
from ml_collections import ConfigDict

from configs.base import base_config, threat
from configs.defenses import ONE_STEP


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = base_config(defense)
    natural = defense == 'natural'
    config.data.name = 'oct_phantom'
    config.data.augment = (('flip_horizontal', {}),)
    config.model.options = ConfigDict({'stage_sizes': (1, 1), 'width': 32, 'stem': 'strided'})
    if defense not in ONE_STEP:
        config.defense.eps = 4 / 255
        # Without the slow start adversarial training stays at the level of guessing on these scans.
        config.defense.warmup_epochs = 8.0
        config.defense.attack.options.num_steps = 5
        config.defense.attack.options.relative_step_size = 0.5
    config.train.epochs = 10.0 if natural else 14.0
    config.train.batch_size = 64
    config.train.eval_every_epochs = 5.0 if natural else 7.0
    config.train.checkpoint_every_epochs = config.train.eval_every_epochs
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 3e-4 if defense == 'ssat' else 3e-3  # see configs/medmnist_cpu.py
    config.validation.eps = 4 / 255
    config.validation.max_examples = 200
    config.eval.max_examples = 300
    config.eval.block_width = 32  # for the demo, which runs on one device on any machine
    config.eval.chunk = 128
    config.eval.attacks = ConfigDict({'fgsm': threat('fgsm'), 'pgd20': threat('pgd', num_steps=20),
                                      'smia20': threat('smia', num_steps=20)})
    return config
