"""The smallest run there is: a perceptron on 32 phantoms of 16 pixels. A config like any other."""
from ml_collections import ConfigDict

from configs.base import base_config, threat


def get_config(defense='pgd_at'):
    config = base_config(defense)
    config.data.name = 'oct_phantom'
    config.data.size = 16
    config.data.options = ConfigDict({'num_examples': 32})
    config.data.augment = (('flip_horizontal', {}),)
    config.model.name = 'perceptron'
    config.model.options = ConfigDict({'hidden': (256,)})
    config.defense.attack.options.num_steps = 2
    config.train.epochs = 2.0
    config.train.batch_size = 16
    config.train.log_every = 1
    config.validation.num_steps = 2
    config.eval.eps = (2 / 255, 8 / 255)
    config.eval.block_width = 2
    config.eval.chunk = 32
    config.eval.num_pictures = 2
    config.eval.attacks = ConfigDict({'fgsm': threat('fgsm'), 'pgd3': threat('pgd', num_steps=3, num_restarts=2),
                                      'smia3': threat('smia', num_steps=3)})
    return config
