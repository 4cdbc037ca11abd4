"""What the runs on masks, landmarks, boxes and shapes share; not a run of its own.

Perturbations are measured in L2, as the papers on these tasks do, at radii scaled to the image: a radius of 10 at
320 x 320 pixels is as much per pixel as 2 at 64 x 64. The unit of the radii is a root mean square change of
2/255 of every value.
"""
from ml_collections import ConfigDict

from configs.base import threat
from configs.defenses import ONE_STEP

ADAPTIVE = ('amat', 'ima', 'ame')  # defenses that give every image a radius of its own
IN_LINF = (*ONE_STEP, 'mpadvt')  # defenses whose published radii are small ones in Linf: they stay that


def for_images(config: ConfigDict, *, num_values: int, epochs: tuple[float, float], augment: tuple,
               num_steps: int = 10) -> ConfigDict:
    """Fills in the augmentation, radii, attacks, the selection, the batch size and the length of the training.

    Args:
      config: of any dense task.
      num_values: of an image: pixels times channels.
      epochs: of natural training from drawn weights, and of the other defenses from the natural run's weights
        (`config.train.init_from`), which a CPU can afford and in which margins grow from the first epoch.
      augment: of the training images; of it temporal ensembling, which averages an image's outputs over epochs,
        takes what moves nothing.
      num_steps: of the training attack.
    """
    natural, adaptive = config.defense.name == 'natural', config.defense.name in ADAPTIVE
    ensembling = config.defense.name == 'te'
    config.data.augment = tuple(each for each in augment if each[0] == 'intensity' or not ensembling)
    config.train.epochs = float(epochs[not natural])
    config.train.eval_every_epochs = config.train.checkpoint_every_epochs = config.train.epochs / 4
    unit = round(2 / 255 * num_values**0.5, 2)
    if config.defense.name not in IN_LINF:
        config.defense.eps = 2 * unit  # SAT's; the other of the comparison is --config.defense.eps of half that
        config.validation.eps = 2 * unit
        config.defense.attack.options.norm = 'l2'
        config.defense.attack.options.num_steps = num_steps
        # Steps add up to 4 radii for adaptive margins (alpha of the paper's code), to 2.5 elsewhere.
        config.defense.attack.options.relative_step_size = (4 if adaptive else 2.5) / num_steps
    if config.defense.name == 'two_attacks':
        config.defense.step_size = 2.5 * config.defense.eps / num_steps
    if adaptive:
        config.validation.norm = 'l2'
        # Margins can reach 2.5 units by the end of the training, more than SAT's 2.
        config.defense.delta = round(2.5 * unit / epochs[1], 3)
    config.validation.select_metric = 'score' if natural else 'robust_score'
    config.validation.max_examples = 60
    config.train.batch_size = 16
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 2e-3
    # Here quality under attack is a number per image, not right or wrong: every attack runs to its end.
    config.eval.stop_when_fooled = False
    config.eval.attacks = ConfigDict({
        'ifgsm10_l2': threat('ifgsm', eps=(unit, 2 * unit, 4 * unit), norm='l2', num_steps=10),
        # What SMIA is without its stabilization: the same steps from the same start.
        'pgd20_clean_l2': threat('pgd', eps=(unit, 2 * unit, 4 * unit), norm='l2', num_steps=20, start='clean'),
        'smia20_l2': threat('smia', eps=(unit, 2 * unit, 4 * unit), norm='l2', num_steps=20),
        'pgd100_l2': threat('pgd', eps=(unit, 2 * unit, 4 * unit), norm='l2', num_steps=100),
        'ifgsm10': threat('ifgsm', num_steps=10),
        'smia20': threat('smia', num_steps=20),
        'pgd100': threat('pgd', num_steps=100),
    })
    return config
