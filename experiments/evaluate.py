"""Attacks a trained model.

    python -m experiments.evaluate --config=configs/retinamnist.py:trades --workdir=runs/trades

Writes results.jsonl, verdicts/ and pictures.npz into the workdir and prints the table. With
--config.eval.preprocess (experiments/preprocessing.py says what is reported then) the files lie in
preprocessed/<name> in the workdir, and the rows in its results.jsonl too, beside those of the model alone.
"""
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from configs.base import threat
from experiments import build, preprocessing
from experiments.training_data import defense_title
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.transfer import transfer
from medrobust_jax.core.types import Task
from medrobust_jax.evaluate.files import plain
from medrobust_jax.evaluate.judge import judge
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.records import Row, read_rows, update_rows
from medrobust_jax.evaluate.suite import Ensemble, Examples, Threat
from medrobust_jax.evaluate.writing import Subject, options_of, recorded
from medrobust_jax.models.forward import apply_model
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.train.checkpoint import config_fingerprint, differing_fields, load_for_evaluation


def evaluate(config: ConfigDict, workdir: str | Path, *, data_dir: str | None = None,
             progress: bool | None = None) -> list[Row]:
    """Judges the checkpoint in `workdir` as `config.eval` says.

    Args:
      config: the config that the workdir was trained with; its 'eval' part may differ.
      workdir: a folder that `train_and_evaluate` filled.
      data_dir: where data sets are looked for; None reads MEDROBUST_DATA.
      progress: True for bars, False for silence, None to decide by the terminal.

    Returns:
      The rows that were written.
    """
    subject, examples, task = subject_of(config, workdir, data_dir=data_dir)
    layout = make_layout(data_mesh(), width=config.eval.block_width, chunk=config.eval.chunk)
    threats = threats_of(config, task, num_samples=subject.setting.get('eot_samples', 0))
    folder = preprocessing.folder_of(subject, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    with Bars(shown=progress) as bars:
        rows = judge(subject, examples, threats, tuple(config.eval.eps),
                     layout=layout, seed=config.eval.seed, workdir=folder,
                     stop_when_fooled=config.eval.stop_when_fooled, order=config.eval.order,
                     num_pictures=config.eval.num_pictures, save_images=config.eval.save_images,
                     progress=bars.advance)
    if folder != Path(workdir):
        update_rows(Path(workdir) / 'results.jsonl', rows)
    return rows


def subject_of(config: ConfigDict, workdir: str | Path, *, data_dir: str | None = None
               ) -> tuple[Subject, Examples, Task]:
    """The trained model of a workdir behind `config.eval.preprocess`, the examples it is judged on, and its task.

    Raises:
      FileNotFoundError: where there is no checkpoint.
      ValueError: where the workdir was trained with another config.
    """
    build.check_config(config)
    chosen = preprocessing.preprocessors_of(config)
    params, model_state, metadata = load_for_evaluation(workdir, config.eval.checkpoint)
    trained, asked = metadata['config'], build.training_config(config)
    if config_fingerprint(trained) != config_fingerprint(asked):
        raise ValueError(f'{workdir} was trained with another config; differing fields: '
                         + '; '.join(differing_fields(trained, asked))
                         + ''.join(f'; a run trained with --config.{flag} needs it here too'
                                   for flag, part, field in (('task.calibrated_on', 'task', 'threshold'),
                                                             ('train.init_from', 'train', 'init_from'))
                                   if trained[part].get(field) != asked[part].get(field)))
    source = build.load_split(config, config.eval.split, data_dir)
    task = build.build_task(config, source.info)
    model = apply_model(build.build_model(config, task))

    def forward(variables: Any, images: jax.Array, keys: jax.Array) -> jax.Array:
        return model(*variables, images, batch_norm='eval')[0]

    identity = {'dataset': config.data.name, 'split': config.eval.split, 'model': config.model.name,
                'defense': preprocessing.described(config, chosen), 'seed': config.seed}
    fingerprints = {'config_fingerprint': config_fingerprint(trained),
                    'checkpoint_fingerprint': metadata['checkpoint_fingerprint'],
                    'dataset_fingerprint': source.info.fingerprint}
    subject = Subject(preprocessing.before(forward, chosen), (params, model_state), task, identity, fingerprints,
                      build.criterion_of(config, judged=True), tuple(source.info.class_names),
                      preprocessing.recorded(config, chosen))
    return subject, build.examples_of(source, task, config.eval.max_examples), task


def threats_of(config: ConfigDict, task: Task, *, num_samples: int = 0) -> list[Threat | Ensemble]:
    """The attacks that `config.eval` asks for, averaged over `num_samples` draws of a preprocessor; 0: of none.

    Raises:
      ValueError: for attacks that do not fit the task or cannot average.
    """
    attacks = config.eval.attacks
    if config.eval.ensemble:
        attacks = {config.eval.ensemble: threat(config.eval.ensemble)}
    threats = preprocessing.averaged(build.build_threats(attacks, task), task, num_samples=num_samples)
    if config.eval.surrogate:
        if num_samples:
            raise ValueError('a transfer attack makes one attempt, which a preprocessor that draws judges once, '
                             'where the other attacks need half of their samples: leave out '
                             'config.eval.surrogate or config.eval.preprocess')
        threats.append(transfer_from(config.eval.surrogate, task, num_steps=config.eval.surrogate_steps))
    return threats


def is_evaluated(config: ConfigDict, workdir: str | Path, *, data_dir: str | None = None) -> bool:
    """Whether results.jsonl holds this very run under all that `config.eval` asks for.

    The checkpoint, the images, the criterion, and every attack's options, restarts, seed and radii must be the
    same. Not for models behind `config.eval.preprocess`.
    """
    results = Path(workdir) / 'results.jsonl'
    if not results.is_file():
        return False
    metadata, chosen = load_for_evaluation(workdir, config.eval.checkpoint)[2], config.eval
    if metadata['config_fingerprint'] != config_fingerprint(build.training_config(config)):
        return False
    source = build.load_split(config, chosen.split, data_dir)
    threats = threats_of(config, build.build_task(config, source.info))
    count = min(len(source), len(source) if chosen.max_examples is None else chosen.max_examples)
    about = {'checkpoint_fingerprint': metadata['checkpoint_fingerprint'],
             'dataset_fingerprint': source.info.fingerprint,
             'criterion': list(build.criterion_of(config, judged=True)) or None}
    wanted = (defense_title(config), chosen.split, 'robust_accuracy', count)
    found = {(row.attack, row.norm, row.eps): row.attack_options for row in read_rows(results)
             if (row.defense, row.split, row.metric, row.n) == wanted
             and about == {name: row.provenance.get(name) for name in about}}
    asked, common = {('clean', '', 0.0): {}}, {'seed': chosen.seed, 'stops': chosen.stop_when_fooled}
    radii: dict[tuple[str, float], list[str]] = {}
    for each in threats:
        for eps in each.eps or chosen.eps:
            asked[each.name, each.norm, float(eps)] = recorded(options_of(each), **common)
            radii.setdefault((each.norm, float(eps)), []).append(each.name)
    for (norm, eps), names in radii.items():
        if len(names) > 1:  # of one attack there is no worst
            asked['worst_case', norm, eps] = recorded({'attacks': names}, **common)
    return all(key in found and plain(found[key]) == plain(options) for key, options in asked.items())


def transfer_from(workdir: str, task: Task, *, num_steps: int,
                  outputs_of: Callable[[Any], Any] = lambda outputs: outputs) -> Threat:
    """PGD crafted on the model of another workdir, one image per example handed to the model that is judged.

    Args:
      workdir: of the surrogate.
      task: of both.
      num_steps: of PGD.
      outputs_of: brings the surrogate's outputs into the form of the model's that is judged.
    """
    surrogate, metadata = build.trained_model(workdir, task)
    trained = metadata['config']
    about = {'attack': 'transfer', 'crafted_by': 'pgd', 'num_steps': num_steps,
             'surrogate_fingerprint': metadata['checkpoint_fingerprint'], 'surrogate': trained['defense']['name'],
             'surrogate_seed': trained['seed']}
    attack = transfer(pgd(num_steps=num_steps), lambda images, keys: outputs_of(surrogate(images)))
    return Threat(f'transfer_{trained["defense"]["name"]}', attack, options=about)


@dataclasses.dataclass
class Bars:
    """One progress bar per attack, counting examples whose verdicts are known, with the time left."""

    shown: bool | None = None
    _bar: Any = None
    _name: str = ''

    def __enter__(self) -> 'Bars':
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def advance(self, name: str, done: int, total: int) -> None:
        """Moves the bar of attack `name` to `done` of `total` examples."""
        if name != self._name:
            self._close()
            self._name = name
            logging.debug('attacking %d examples with %s', total, name)
            disable = None if self.shown is None else not self.shown
            self._bar = tqdm(desc=f'{name:>12}', total=total, unit=' images', disable=disable, leave=False)
        self._bar.update(done - self._bar.n)


if __name__ == '__main__':
    from absl import flags

    from experiments import main
    from experiments.report import text_tables

    main.launch(lambda config, workdir: print(text_tables(
        evaluate(config, workdir, data_dir=flags.FLAGS.data_dir))), device_per_core=True)
