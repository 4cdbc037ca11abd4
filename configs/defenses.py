"""The fields of `config.defense` that belong to one defense alone, and the defaults that differ between them.

Not a run of its own: configs/base.py calls it. A run's fingerprint covers all of its fields, so a field is added
only to the configs of the defense that reads it: new defenses leave older runs what they were.
"""
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

DEFENSES = ('natural', 'pgd_at', 'trades', 'mart', 'gairat', 'te', 'hat', 'mpadvt', 'fast_at', 'amat', 'ima',
            'mma', 'two_attacks')
GAUSSIAN_START = ('trades', 'mart', 'hat')  # x + .001 N(0, 1)


def fill_defense(config: ConfigDict) -> None:
    """Sets what the defense `config.defense.name` has besides the fields that all share."""
    chosen = config.defense
    if chosen.name in GAUSSIAN_START:
        chosen.attack.options.start = 'gaussian'
    fill = {'gairat': _gairat, 'te': _temporal_ensembling, 'hat': _hat, 'mpadvt': _mpadvt, 'fast_at': _fast_at,
            'amat': _adaptive_margin, 'ima': _adaptive_margin, 'mma': _max_margin, 'two_attacks': _two_attacks}
    if chosen.name in fill:
        fill[chosen.name](config)


def _gairat(config: ConfigDict) -> None:
    config.defense.burn_in = 0.5  # share of the training with equal weights
    config.defense.bias = -1.0  # Lambda; larger tells examples less apart


def _temporal_ensembling(config: ConfigDict) -> None:
    config.defense.te_weight = 300.0
    config.defense.te_decay = 0.9  # of the moving average of every example's outputs
    config.defense.te_ramp = (0.5, 0.7)  # shares of the training: table and penalty start; the penalty is whole
    config.defense.te_memory_gb = 4.0  # what the table of outputs may take


def _hat(config: ConfigDict) -> None:
    config.defense.helper = ''  # the workdir of a finished run on the same data, trained naturally
    config.defense.helper_weight = 1.0  # gamma
    config.defense.helper_reach = 3.5  # helper images lie at x + reach (x' - x)


def _mpadvt(config: ConfigDict) -> None:
    """`eps`, warm-up and the attack's options are not read, but its norm is."""
    config.defense.mp_eps = (0.01, 0.04)  # the radius is drawn between them, per batch
    config.defense.mp_step_size = 1 / 255
    config.defense.mp_probability = 0.5  # of a batch to be perturbed
    config.defense.l1_weight = 0.01  # times the mean size of a weight


def _fast_at(config: ConfigDict) -> None:
    """Of the attack's options only the norm is read: one step from a random start."""
    config.defense.fast_step_size = 1.25  # in units of eps


def _adaptive_margin(config: ConfigDict) -> None:
    """`eps` and warm-up are not read; steps are relative_step_size * E: with 20 of them alpha is 4."""
    config.defense.delta = 0.1  # growth of a margin per epoch, in the attack's norm; scale it to the image size
    config.defense.e_max = placeholder(float)  # the largest margin; None: no bound
    config.defense.min_margin = 0.0  # delta for landmarks and detection
    config.defense.adversarial_share = 0.5  # of the loss
    config.defense.step_size = placeholder(float)  # fixed instead of relative; landmarks: 5 e_max / 20
    if config.defense.name == 'ima':
        config.defense.num_bisections = 10
    config.defense.attack_batch_norm = 'batch_stats'
    config.defense.attack.options = ConfigDict({'num_steps': 20, 'norm': 'l2', 'relative_step_size': 0.2})
    # Chosen as the other defenses' checkpoints are; a config with an L2 grid sets 'l2' and an eps to go with it.
    config.validation.norm = 'linf'


def _max_margin(config: ConfigDict) -> None:
    """`eps` is d_max, the largest margin that is asked for; warm-up is not read."""
    config.defense.clean_share = 1 / 3  # of the loss
    config.defense.num_bisections = 10


def _two_attacks(config: ConfigDict) -> None:
    """`warmup_epochs` is not read, and the attack's relative step neither."""
    config.defense.attack_losses = ('task',)  # or of ('shape_regression', 'shape_mask'): 'r', 's', 'rs'
    config.defense.ramp = 1.0  # share of the training over which eps grows from 0
    config.defense.step_size = 0.01  # absolute; does not ramp
    config.defense.attack_batch_norm = 'batch_stats'
    config.defense.attack.options.num_steps = 20
