"""The fields of `config.defense` that belong to one defense alone, and the defaults that differ between them.

Not a run of its own: configs/base.py calls it. A run's fingerprint covers all of its fields, so a field is added
only to the configs of the defense that reads it: new defenses leave older runs what they were.
"""
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

DEFENSES = ('natural', 'pgd_at', 'trades', 'mart', 'gairat', 'te', 'hat', 'mpadvt', 'fast_at', 'amat', 'ima',
            'mma', 'two_attacks', 'ame', 'fgsm_at', 'free_at', 'gce', 'ssat', 'rst', 'uat')
GAUSSIAN_START = ('trades', 'mart', 'hat', 'rst')  # x + .001 N(0, 1)
ONE_STEP = ('fgsm_at', 'ssat')  # one step of size eps from the clean image, eps small and drawn per batch
SEMI_SUPERVISED = ('ssat', 'rst', 'uat')  # read the images of the whole training split


def fill_defense(config: ConfigDict) -> None:
    """Sets what the defense `config.defense.name` has besides the fields that all share."""
    chosen = config.defense
    if chosen.name in GAUSSIAN_START:
        chosen.attack.options.start = 'gaussian'
    fill = {'gairat': _gairat, 'te': _temporal_ensembling, 'hat': _hat, 'mpadvt': _mpadvt, 'fast_at': _fast_at,
            'amat': _adaptive_margin, 'ima': _adaptive_margin, 'ame': _adaptive_margin, 'mma': _max_margin,
            'two_attacks': _two_attacks, 'fgsm_at': _fgsm_at, 'free_at': _free_at, 'gce': _guided_complement,
            'ssat': _ssat, 'rst': _robust_self_training, 'uat': _unsupervised_at}
    if chosen.name in SEMI_SUPERVISED:
        with_few_labels(config, 1.0)
    if chosen.name in fill:
        fill[chosen.name](config)


def with_few_labels(config: ConfigDict, fraction: float) -> ConfigDict:
    """The run on a share of the labels only; semi-supervised defenses have the field already.

    Given a field of its own, the run is another one than without, also at 1: batches then go on from one pass over
    the labeled examples into the next, with nothing padded.
    """
    config.data.labeled_fraction = fraction  # of the training split, of every class; drawn by config.seed
    return config


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
    if config.defense.name in ('ima', 'ame'):
        config.defense.num_bisections = 10
    if config.defense.name == 'ame':
        config.defense.delta_decay = 0.95  # of delta, per epoch
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


def _one_small_step(config: ConfigDict) -> None:
    """The published attack of semi-supervised training and its baseline; warm-up is not read."""
    config.defense.eps_low, config.defense.eps = 0.001, 0.003
    config.defense.attack.options = ConfigDict({
        'num_steps': 1, 'norm': 'linf', 'relative_step_size': 1.0, 'start': 'clean'})
    config.defense.attack_batch_norm = 'batch_stats'
    config.validation.eps = 0.003  # at 8/255 no checkpoint would be better than another


def _fgsm_at(config: ConfigDict) -> None:
    _one_small_step(config)
    config.defense.clean_weight = 0.5  # clean and attacked images count alike


def _free_at(config: ConfigDict) -> None:
    """Of the attack's options only the norm is read."""
    config.defense.replays = 4  # steps in turn on one batch; the number of steps stays
    config.defense.free_step_size = 1.0  # in units of eps
    config.defense.batch_size = config.train.get_ref('batch_size')  # set config.train's: this is the same
    config.defense.attack_batch_norm = 'batch_stats'


def _guided_complement(config: ConfigDict) -> None:
    """No image is attacked in training; three classes or more."""
    config.defense.gce_alpha = 0.333  # of the guiding factor
    config.validation.eps = 0.003  # as for the one-step defenses that it is compared with


def _ssat(config: ConfigDict) -> None:
    _one_small_step(config)
    config.defense.unlabeled_weight = 3.0
    config.defense.labeled_weight = 0.0  # of an adversarial term on labeled images
    config.defense.confidence = 0.0  # the least probability of a pseudo-label that counts
    config.defense.teacher_decay = placeholder(float)  # a number in [0, 1): pseudo-labels by averaged weights


def _robust_self_training(config: ConfigDict) -> None:
    config.defense.helper = ''  # the workdir of a finished run on the labeled examples, trained naturally
    config.defense.pseudo_share = 0.5  # of the loss


def _unsupervised_at(config: ConfigDict) -> None:
    config.defense.mode = 'online'  # 'fixed' or 'both' need the helper
    config.defense.helper = ''  # the workdir of a finished run on the labeled examples, trained naturally
    config.defense.unlabeled_weight = 5.0
