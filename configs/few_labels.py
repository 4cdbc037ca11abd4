"""Any other config with a share of its training labels: what semi-supervised training is compared with.

    python -m experiments.train    --config=configs/few_labels.py:pneumoniamnist/pgd_at \\
        --config.data.labeled_fraction=0.05 --workdir=runs/pneumoniamnist/pgd_at_5/0
    python -m experiments.evaluate --config=configs/few_labels.py:pneumoniamnist/pgd_at \\
        --config.data.labeled_fraction=0.05 --workdir=runs/pneumoniamnist/pgd_at_5/0

After the colon: a config of this folder, a slash, and the defense. The defenses that read unlabeled images have
the field of their own accord: `--config=configs/pneumoniamnist.py:ssat --config.data.labeled_fraction=0.05`. With
one seed all of them are given the same labels.
"""
import importlib
from pathlib import Path

from ml_collections import ConfigDict

from configs.defenses import with_few_labels
from medrobust_jax.core.checks import did_you_mean


def get_config(run: str = 'pneumoniamnist/natural') -> ConfigDict:
    """`run` is a config of this folder, a slash, and one of configs.defenses.DEFENSES."""
    name, _, defense = run.partition('/')
    files = sorted({path.stem for path in Path(__file__).parent.glob('*.py')} - {'few_labels', '__init__'})
    modules = {stem: importlib.import_module(f'configs.{stem}') for stem in files}
    known = {stem: module for stem, module in modules.items() if hasattr(module, 'get_config')}  # others are parts
    if name not in known:
        did_you_mean(name, known, 'config before the slash of --config')
    return with_few_labels(known[name].get_config(defense or 'natural'), 1.0)
