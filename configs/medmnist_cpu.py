"""What the runs at 28 pixels on a CPU share; not a run of its own.

The net is a ResNet of three basic blocks (8 weight layers, widths 32, 64, 128, 0.3 M parameters)
whose first convolution has stride 2: its adversarial training takes minutes on two cores, where a
ResNet-18's takes hours. Classes are drawn equally often, and the checkpoint is chosen by balanced
accuracy: with unequal classes, plain robust accuracy would choose a model that names the largest
class whatever it sees.
"""
from ml_collections import ConfigDict


def for_cpu(config: ConfigDict) -> ConfigDict:
    """Fills in the net, the sampling and the selection."""
    natural = config.defense.name == 'natural'
    config.data.class_balanced = True
    config.model.name = 'resnet'
    config.model.options = ConfigDict({'stage_sizes': (1, 1, 1), 'width': 32, 'stem': 'strided'})
    config.train.batch_size = 128
    # A net that labels images for itself calls all of them the same after steps that are too long, .02 for one, or
    # from drawn weights: give 'ssat' those of a natural run on the same labels (config.train.init_from).
    config.optimizer.learning_rate = 0.005 if config.defense.name == 'ssat' else 0.1
    config.validation.select_metric = 'balanced_accuracy' if natural else 'robust_balanced_accuracy'
    config.eval.chunk = 128
    return config
