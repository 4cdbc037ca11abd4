"""Certifies a trained classifier by randomized smoothing, in L2.

    python -m experiments.certify --config=configs/x.py:natural --workdir=runs/x --sigma=.25 --num_samples=1000

Train with noise of the same sigma; both commands need the field then:

    --config.data.augment="(('noise', {'sigma': .25}),)"

or put a denoiser before a model trained without (experiments/train_denoiser.py):

    --config.eval.preprocess="(('denoiser', {'workdir': 'runs/denoiser'}),)"

Writes rows into the workdir's results.jsonl, under a defense with '+smoothing(sigma=...)' in its name,
and every image's certificate into certificates/. The rows:

* 'certified_accuracy' at each L2 radius, attack 'smoothing_certificate': the share of images whose class
  is right and certified within more than this radius. Of each image a certificate fails with probability
  alpha at most;
* 'accuracy' and 'abstention_rate' of the smoothed classifier without an attack, attack 'clean'.
"""
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.evaluate import subject_of
from experiments.preprocessing import file_name
from medrobust_jax.core import rng
from medrobust_jax.evaluate.files import save_arrays
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.provenance import provenance
from medrobust_jax.evaluate.records import Row, rows_of, update_rows
from medrobust_jax.evaluate.smoothing import ABSTAIN, Certificates, certify, decide
from medrobust_jax.evaluate.suite import Examples
from medrobust_jax.metrics.intervals import proportion
from medrobust_jax.parallel.mesh import data_mesh

ATTACK = 'smoothing_certificate'
RADII_IN_SIGMA = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


def certify_run(config: ConfigDict, workdir: str | Path, *, sigma: float, num_samples: int = 1000,
                num_selection: int = 100, alpha: float = 0.001, radii: Sequence[float] = (),
                max_examples: int | None = None, data_dir: str | None = None) -> list[Row]:
    """Certifies the checkpoint in `workdir` behind `config.eval.preprocess`.

    Args:
      config: the config that the workdir was trained with; its 'eval' part may differ.
      workdir: a folder that `train_and_evaluate` filled.
      sigma: of the smoothing noise, in units of [0, 1] pixels.
      num_samples: noisy passes that bound the probability of a class.
      num_selection: noisy passes that choose the class.
      alpha: the probability that an image's certificate is wrong.
      radii: the L2 radii of the rows; empty for 0, .25, .5, 1, 1.5, 2, 2.5 and 3 times sigma.
      max_examples: None for what `config.eval.max_examples` says.
      data_dir: where data sets are looked for; None reads MEDROBUST_DATA.

    Returns:
      The rows, which are also in the workdir's results.jsonl.

    Raises:
      ValueError: for a task that names no class, or values out of range.
    """
    config = config.copy_and_resolve_references()
    if max_examples is not None:
        config.eval.max_examples = max_examples
    subject, examples, task = subject_of(config, workdir, data_dir=data_dir)
    if task.name != 'classification':
        raise ValueError(f"smoothing certifies classes; the task is '{task.name}'")
    layout = make_layout(data_mesh(), width=config.eval.block_width, chunk=config.eval.chunk)
    keys, started = rng.example_keys(config.eval.seed, examples.index), time.monotonic()
    found = certify(subject.forward, subject.variables, examples.images, keys, sigma=sigma, layout=layout,
                    num_selection=num_selection, num_samples=num_samples, alpha=alpha)
    # What decides a certificate stands in the name: curves of different settings must not mix.
    name = f'{subject.identity["defense"]}+smoothing(sigma={sigma:g}, n={num_samples}, alpha={alpha:g})'
    options = {'attack': ATTACK, 'sigma': sigma, 'num_selection': num_selection, 'num_samples': num_samples,
               'alpha': alpha, 'seed': config.eval.seed}
    evidence = provenance(**subject.fingerprints, block_width=layout.width,
                          wall_seconds=time.monotonic() - started) | dict(subject.setting)
    rows = rows_about(found, examples, tuple(radii) or tuple(factor * sigma for factor in RADII_IN_SIGMA), options,
                      **{**subject.identity, 'defense': name}, provenance=evidence)
    save_arrays(Path(workdir) / 'certificates' / f'{file_name(name)}.npz', {
        **found._asdict(), 'index': np.asarray(examples.index), 'label': np.asarray(examples.targets)})
    update_rows(Path(workdir) / 'results.jsonl', rows)
    return rows


def rows_about(found: Certificates, examples: Examples, radii: Sequence[float], options: Mapping[str, Any],
               **common: Any) -> list[Row]:
    """The rows of a certification, see above; `options` are its settings, `common` the other fields of a row."""
    common = {**common, 'attack_options': options, 'backward_passes': 0.0,
              'forward_passes': float(options['num_selection'] + options['num_samples'])}
    decided = decide(found.counts, alpha=options['alpha'])
    rows = rows_of({'accuracy': proportion(decided == examples.targets, examples.groups),
                    'abstention_rate': proportion(decided == ABSTAIN, examples.groups)},
                   attack='clean', norm='', eps=0.0, **common)
    right = found.predictions == examples.targets
    for radius in radii:
        rows += rows_of({'certified_accuracy': proportion(right & (found.radii > radius), examples.groups)},
                        attack=ATTACK, norm='l2', eps=float(radius), **common)
    return rows


if __name__ == '__main__':
    from absl import flags

    from experiments import main
    from experiments.report import text_tables

    FLAGS = flags.FLAGS
    flags.DEFINE_float('sigma', None, 'Of the smoothing noise, in units of [0, 1] pixels.', lower_bound=0)
    flags.DEFINE_integer('num_samples', 1000, 'Noisy passes that bound the probability of a class.')
    flags.DEFINE_integer('num_selection', 100, 'Noisy passes that choose the class.')
    flags.DEFINE_float('alpha', 0.001, "The probability that an image's certificate is wrong.")
    flags.DEFINE_multi_float('radius', [], 'An L2 radius of the rows; give the flag once for each.')
    flags.DEFINE_integer('max_examples', None, "Certify so many images; default: the config's.")
    flags.mark_flag_as_required('sigma')

    def run(config: ConfigDict, workdir: str) -> None:
        """Prints the share that is certified at each radius."""
        rows = certify_run(config, workdir, sigma=FLAGS.sigma, num_samples=FLAGS.num_samples,
                           num_selection=FLAGS.num_selection, alpha=FLAGS.alpha, radii=FLAGS.radius,
                           max_examples=FLAGS.max_examples, data_dir=FLAGS.data_dir)
        for metric in ('accuracy', 'abstention_rate', 'certified_accuracy'):
            print(text_tables(rows, metric=metric), end='\n\n')

    main.launch(run, device_per_core=True)
