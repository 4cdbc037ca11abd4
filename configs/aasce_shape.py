"""The outline of the spine in X-rays (AASCE) at 64 x 32 pixels: 68 points and the mask they enclose.

    python -m experiments.train     --config=configs/aasce_shape.py:natural --workdir=runs/shape/natural/0
    python -m experiments.calibrate --config=configs/aasce_shape.py:natural --workdir=runs/shape/natural/0 \
        --calibration_split=val
    python -m experiments.train     --config=configs/aasce_shape.py:two_attacks --workdir=runs/shape/rs/0 START
    python -m experiments.evaluate  --config=configs/aasce_shape.py:two_attacks --workdir=runs/shape/rs/0 START

START is `--config.train.init_from=runs/shape/natural/0 --config.task.calibrated_on=runs/shape/natural/0`.

'two_attacks' trains on attacks on points and mask ('rs') in 10 steps of .01 [code: 20] and chooses checkpoints
on X-rays [code: on shapes drawn from 30 modes]; one attack alone is
`--config.defense.attack_losses="('shape_regression',)"`. For new anatomy from a shape model of 10 modes put
`('shape_warp', {'num_modes': 10})` first into `config.data.augment`. On a GPU:
`--config.data.options.size="(128, 64)" --config.model.name=shape_net`.
"""
from ml_collections import ConfigDict

from configs.base import base_config, threat
from configs.dense_cpu import for_images


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    augment = (('affine', {'max_degrees': 5.0, 'max_scale': 0.1, 'max_pixels': 3.0}),
               ('intensity', {'brightness': 0.1, 'contrast': 0.2, 'gamma': 0.2}))
    config = for_images(base_config(defense, 'shape'), num_values=64 * 32, epochs=(60, 8),
                        augment=augment)
    config.data.name = 'aasce'
    config.data.options = ConfigDict({'size': (64, 32), 'mask': True})
    config.task.contour = 'spine'
    config.task.cobb_angles = True
    config.model.name = 'shape_net_small'
    if defense == 'two_attacks':
        config.defense.attack_losses = ('shape_regression', 'shape_mask')
        config.defense.eps = config.validation.eps = 0.07  # Linf, steps of .01 [code of the paper]
        config.defense.step_size = 0.01
        config.defense.attack.options.norm = 'linf'
        config.defense.attack.options.num_steps = 10
    config.eval.max_examples = 24
    # The attacks of the paper on shapes, inside the distribution, over a part of its radii; and on the whole loss.
    for climbed in ('', '_points', '_mask'):
        config.eval.attacks[f'adamax100{climbed}'] = threat(
            f'pgd_adamax{climbed}', eps=(0.01, 0.03, 0.07, 0.1), num_steps=100)
    return config
