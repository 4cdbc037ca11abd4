"""Measures what a clean-trained model reaches, as the criterion that attacks and defenses use.

    python -m experiments.train     --config=configs/acdc.py:natural --workdir=runs/acdc/natural/0
    python -m experiments.calibrate --config=configs/acdc.py:natural --workdir=runs/acdc/natural/0
    python -m experiments.train     --config=configs/acdc.py:amat --workdir=runs/acdc/amat/0 \
        --config.task.calibrated_on=runs/acdc/natural/0

Writes thresholds.json into the workdir: an output is acceptable whose quality (`Task.quality`) is as good as what
the task's `threshold_of` makes of the clean model's own qualities on all images of one split, training images
unless --calibration_split says otherwise. Evaluations judge by the same thresholds with
--config.eval.calibrated_on.
"""
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.evaluate import subject_of
from experiments.tasks import THRESHOLDS
from medrobust_jax.evaluate.files import replacing
from medrobust_jax.evaluate.programs import make_layout, row_by_row
from medrobust_jax.evaluate.suite import clean_point
from medrobust_jax.parallel.mesh import data_mesh


def calibrate(config: ConfigDict, workdir: str | Path, *, split: str, data_dir: str | None = None
              ) -> dict[str, Any]:
    """Writes and returns the thresholds, with the qualities' distribution and what they were measured on.

    Raises:
      ValueError: for a model that was not trained naturally, or a task whose criterion has no thresholds.
    """
    if config.defense.name != 'natural':
        raise ValueError(f"thresholds come from a clean-trained model; the defense is '{config.defense.name}'")
    config = config.copy_and_resolve_references()
    config.eval.split, config.eval.max_examples, config.eval.preprocess = split, None, ()
    subject, examples, task = subject_of(config, workdir, data_dir=data_dir)
    if task.quality is None or task.threshold_of is None:
        raise ValueError(f"the criterion of the task '{task.name}' has no thresholds to calibrate")
    layout = make_layout(data_mesh(), width=config.eval.block_width, chunk=config.eval.chunk)
    point = clean_point(subject.forward, subject.variables, task, examples, layout=layout, seed=config.eval.seed)
    values = np.asarray(row_by_row(task.quality)(point.outputs, examples.targets))
    if not np.isfinite(values).all():
        row = int(examples.index[~np.isfinite(values).reshape(len(values), -1).all(axis=1)][0])
        raise ValueError(f'the quality of row {row} of {split} is not finite: no output there is usable')
    found = {
        'thresholds': list(task.threshold_of(values)), 'task': task.name, 'split': split,
        'num_examples': len(values),
        'quality_percentiles': {str(p): np.percentile(values, p, axis=0).tolist() for p in (5, 25, 50, 75, 95)},
        **subject.fingerprints}
    with replacing(Path(workdir) / THRESHOLDS) as partial:
        partial.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    return found


if __name__ == '__main__':
    from absl import flags

    from experiments import main

    flags.DEFINE_string('calibration_split', 'train', 'The split whose images are measured.')
    main.launch(lambda config, workdir: print(json.dumps(calibrate(
        config, workdir, split=flags.FLAGS.calibration_split, data_dir=flags.FLAGS.data_dir), indent=1)),
        device_per_core=True)
