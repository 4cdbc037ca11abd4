"""Red cells, white cells and platelets in blood smears (BCCD) at 72 x 96 pixels, a small one-stage detector.

    python -m experiments.train     --config=configs/bccd.py:natural --workdir=runs/bccd/natural/0
    python -m experiments.calibrate --config=configs/bccd.py:natural --workdir=runs/bccd/natural/0
    python -m experiments.train     --config=configs/bccd.py:amat --workdir=runs/bccd/amat/0 START
    python -m experiments.evaluate  --config=configs/bccd.py:amat --workdir=runs/bccd/amat/0 START

START is `--config.train.init_from=runs/bccd/natural/0 --config.task.calibrated_on=runs/bccd/natural/0`.

On a GPU: `--config.data.options.size="(240, 320)" --config.model.options.width=64`.
"""
from ml_collections import ConfigDict

from configs.base import base_config
from configs.dense_cpu import ADAPTIVE, for_images


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES; 'pgd_at' is what the papers on detection call SAT."""
    augment = (('flip_horizontal', {}), ('flip_vertical', {}),
               ('affine', {'max_degrees': 0.0, 'max_scale': 0.2, 'max_pixels': 6.0}),
               ('intensity', {'brightness': 0.1, 'contrast': 0.2}))
    config = for_images(base_config(defense, 'detection'), num_values=72 * 96 * 3, epochs=(80, 14),
                        augment=augment)
    config.data.name = 'bccd'
    config.data.options = ConfigDict({'size': (72, 96)})
    config.model.name = 'detector'
    config.model.options = ConfigDict({'width': 32, 'pyramid_width': 32})
    if defense in ADAPTIVE:
        config.defense.min_margin = config.defense.delta
        config.defense.attack.options.relative_step_size = 5 / config.defense.attack.options.num_steps
    config.eval.max_examples = 24
    return config
