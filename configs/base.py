"""Every field a run has, with its default and what it decides.

Not a run of its own: the other configs start from it. Any field can be set on the command line
(a placeholder stands for None until it is set),

    python -m experiments.train --config=configs/retinamnist.py:trades --config.defense.eps=0.0157 --workdir=...
"""
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.defenses import DEFENSES, fill_defense
from configs.tasks import task_fields


def base_config(defense: str = 'natural', task: str = 'classification') -> ConfigDict:
    """The defaults, for one of `configs.defenses.DEFENSES` and one of `configs.tasks.TASKS`."""
    if defense not in DEFENSES:
        raise ValueError(f"unknown defense '{defense}' after the colon of --config; known: {', '.join(DEFENSES)}")
    config = ConfigDict()
    config.seed = 0  # decides weights, order, augmentation and the training attack's draws

    config.data = ConfigDict()
    config.data.name = ''  # as medrobust_jax.data.registry.load takes it
    config.data.size = placeholder(int)  # side to resize to, (height, width) among the options; None: as it is
    config.data.options = ConfigDict()  # further options of the data set's opener
    config.data.train_split = 'train'
    config.data.validation_split = 'val'
    config.data.class_balanced = False  # draw every class equally often
    config.data.augment = ()  # (name, {options}) pairs of medrobust_jax.data.transforms

    config.task = task_fields(task)  # classification becomes ordinal by config.task.name

    config.model = ConfigDict()
    config.model.name = 'resnet'
    config.model.options = ConfigDict()

    config.defense = ConfigDict()
    config.defense.name = defense
    config.defense.eps = 8 / 255  # radius of the training attack, in units of [0, 1]
    config.defense.eps_low = placeholder(float)  # a number: draw U(eps_low, eps) anew for every batch
    config.defense.warmup_epochs = 0.0  # eps grows from 0 over so many epochs
    config.defense.clean_weight = 0.0  # pgd_at: share of the clean loss
    config.defense.beta = 6.0  # trades
    config.defense.attack_batch_norm = 'eval'  # while crafting: 'eval' or 'batch_stats'
    config.defense.awp_gamma = 0.0  # adversarial weight perturbation; 0 is off
    config.defense.awp_start_epoch = 0.0
    config.defense.attack = ConfigDict()
    config.defense.attack.name = 'pgd'
    config.defense.attack.options = ConfigDict()
    config.defense.attack.options.num_steps = 10
    config.defense.attack.options.norm = 'linf'
    config.defense.attack.options.relative_step_size = 0.25  # 2/255 at 8/255, as the survey
    config.defense.attack.options.start = 'ball'  # or 'gaussian', 'clean'

    config.train = ConfigDict()
    config.train.epochs = 30.0
    config.train.batch_size = 128  # over all devices
    config.train.ema_decay = placeholder(float)  # a number in [0, 1): evaluate a moving average of the weights
    config.train.eval_every_epochs = 1.0
    config.train.checkpoint_every_epochs = 1.0
    config.train.log_every = 10  # steps
    # Start from the best weights of this run, e.g. a natural one of the same model; None: from drawn ones. A run
    # is identified by the fingerprint of these weights, not by where they lay.
    config.train.init_from = placeholder(str)

    config.optimizer = ConfigDict()
    config.optimizer.name = 'sgd'
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decay_norm_and_bias = False
    config.optimizer.clip_norm = placeholder(float)
    config.optimizer.schedule = 'one_cycle'  # constant, cosine, one_cycle, piecewise
    config.optimizer.learning_rate = 0.1  # the schedule's peak
    config.optimizer.warmup_epochs = 0.0  # of the learning rate; one_cycle has its own

    config.validation = ConfigDict()  # decides which checkpoint is 'best'
    config.validation.select_metric = 'accuracy' if defense == 'natural' else 'robust_accuracy'
    config.validation.eps = 8 / 255
    config.validation.num_steps = 10
    config.validation.max_examples = 1000  # the first so many of the validation split
    fill_defense(config)

    config.eval = ConfigDict()  # may differ from the training run's; validation uses block_width and chunk too
    config.eval.split = 'test'
    config.eval.label = placeholder(str)  # what rows and tables call the run; None: its defense
    config.eval.checkpoint = 'best'  # or 'latest'
    config.eval.calibrated_on = placeholder(str)  # judge by the thresholds of this run, not the training's
    config.eval.max_examples = placeholder(int)  # None: the whole split
    config.eval.eps = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    config.eval.seed = 0
    config.eval.block_width = 8  # images per fixed block; decides the last bits, recorded with results
    config.eval.chunk = 64
    config.eval.stop_when_fooled = True  # False: also score-based metrics under attack, at a higher cost
    config.eval.num_pictures = 4
    config.eval.order = 'ascending'  # of the eps grid, or 'bisection', whose inferred entries are marked
    config.eval.ensemble = placeholder(str)  # 'autoattack', 'medical_ensemble' or 'sea' instead of `attacks`
    config.eval.surrogate = placeholder(str)  # a workdir whose model crafts a transfer attack on this one
    config.eval.surrogate_steps = 100
    config.eval.preprocess = ()  # (name, {options}) pairs before the model, of medrobust_jax.models.preprocess
    config.eval.preprocess_gradient = 'auto'  # exact, else BPDA; or always 'exact', 'identity', 'blocked'
    config.eval.eot_samples = 16  # passes that attacks average over where a preprocessor draws; 0: a single one
    config.eval.save_images = False  # keep every adversarial image, to be scored again
    config.eval.system = ConfigDict()  # the model with a detector of attacked images, see experiments.system
    config.eval.system.detectors = (('gaussian', {}), ('nearest_neighbors', {}), ('kernel_density', {}),
                                    ('one_class_svm', {}), ('isolation_forest', {}), ('mahalanobis', {}),
                                    ('lid', {}), ('feature_squeezing', {}))  # (name, {options})
    config.eval.system.attacks = ('fgsm', 'pgd100')  # of `attacks`, by who does not know the detector
    config.eval.system.false_alarm_rate = 0.05  # of clean images, on validation data
    config.eval.system.aware_steps = 50  # of every run of who knows the detector
    config.eval.system.aware_rounds = 6  # of the search for the weight of acceptance
    config.eval.system.num_guides = 3  # clean images whose features are taken on
    config.eval.system.max_fit = 5000  # training images that detectors are fitted on
    config.eval.attacks = ConfigDict()  # name -> {attack, num_restarts, num_targets, eps, options}
    config.eval.attacks.fgsm = threat('fgsm')
    config.eval.attacks.pgd20 = threat('pgd', num_steps=20)
    config.eval.attacks.pgd100 = threat('pgd', num_restarts=2, num_steps=100)
    config.eval.attacks.smia100 = threat('smia', num_restarts=1, num_steps=100)
    return config


def threat(attack: str, *, num_restarts: int = 1, num_targets: int = 1, eps: tuple[float, ...] = (),
           **options: object) -> ConfigDict:
    """One attack of an evaluation, or 'autoattack', 'medical_ensemble' or 'sea'.

    `eps` is a grid of the attack's own (severities 1 to 5, shares of the area); empty for the evaluation's.
    Options are those of medrobust_jax.attacks.registry or medrobust_jax.evaluate.ensembles.
    """
    return ConfigDict({'attack': attack, 'num_restarts': num_restarts, 'num_targets': num_targets, 'eps': eps,
                       'options': ConfigDict(options)})
