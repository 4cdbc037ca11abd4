"""The outline of the spine as in configs/aasce_shape.py, by a network that also rebuilds the image it is shown.

    python -m experiments.train --config=configs/aasce_shape_rebuild.py:natural --workdir=runs/rebuild/natural/0
    python -m experiments.ood   --config=configs/aasce_shape_rebuild.py:natural --workdir=runs/rebuild/natural/0 \
        --starts=noise,acdc

What the network has not learned it cannot rebuild, so that the reconstruction error may tell foreign images from
X-rays; experiments.ood measures how well, and whether an attack that also lowers the error gets past it. The error
is part of the training loss (`losses.shape.shape_loss`).
"""
from ml_collections import ConfigDict

from configs import aasce_shape


def get_config(defense: str = 'natural') -> ConfigDict:
    """`defense` is one of configs.defenses.DEFENSES."""
    config = aasce_shape.get_config(defense)
    config.model.options = ConfigDict({'reconstruct': True})
    return config
