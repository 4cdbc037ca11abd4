"""Where a trained model looks, before and after an attack.

    python -m experiments.explain --config=configs/x.py:trades --workdir=runs/x [--attack=pgd100 --eps=0.0157]

Crafts one attack of the config at one eps (or, with --saved, takes the images that experiments.evaluate saved),
explains every image by Grad-CAM and integrated gradients, and measures how far the maps moved: between the clean
and the attacked image and, as a control, between the clean image and noise of the same size. Every image is
attacked with all steps, those that are wrong without an attack too.

Adds rows to results.jsonl, and writes a few examples to explanations.npz, for experiments.report to show. Needs a
classifier, of single labels or of findings; networks without feature maps before a global average (a vision
transformer, a perceptron) have integrated gradients alone.
"""
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from scipy.special import expit, softmax

from experiments import build
from experiments.attacked import Attacked, choose_threat, craft, load_attacked
from experiments.evaluate import subject_of
from medrobust_jax.core import rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Task
from medrobust_jax.evaluate import records
from medrobust_jax.evaluate.explanations import BASELINES, baseline_image, noise_of_same_size
from medrobust_jax.evaluate.files import save_arrays
from medrobust_jax.evaluate.movement import Moved, Versions, completeness, estimates_of, make_explain, move
from medrobust_jax.evaluate.programs import Layout, in_chunks, make_layout, make_score, row_by_row
from medrobust_jax.evaluate.provenance import provenance
from medrobust_jax.evaluate.suite import Examples
from medrobust_jax.evaluate.writing import AnyThreat, Subject, rows_to_show
from medrobust_jax.models.explain import maps_and_head
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.report.naming import is_explanation

TASKS = ('classification', 'multilabel')  # those with a logit per class or finding
EXPLAINED = ('prediction', 'clean')
_DECIDING = ('explained', 'ig_steps', 'ig_baseline')  # of `Options`; saved images are those of the attack
_NOISE = 0x401E  # keeps the control's keys apart from those of attacks
_LARGEST_GAP = .05  # of the rise in score; ours


class Options(NamedTuple):
    """What is explained, and how.

    Attributes:
      explained: 'prediction' explains of every image the class that is predicted for it, 'clean' the class that
        is predicted for the clean image, before and after.
      ig_steps: of integrated gradients.
      ig_baseline: 'black' or 'mean' (of the clean images that are explained).
      saved: take the images of `workdir/adversarial/<attack>.npz` instead of attacking.
    """

    explained: str = 'prediction'
    ig_steps: int = 64
    ig_baseline: str = 'black'
    saved: bool = False


def explain(config: ConfigDict, workdir: str | Path, *, data_dir: str | None = None, attack: str | None = None,
            eps: float | None = None, options: Options | None = None, replace: bool = False,
            progress: bool | None = None) -> list[records.Row]:
    """Explains the checkpoint in `workdir` on the examples of `config.eval`.

    Args:
      config: the config that the workdir was trained with; its 'eval' part may differ.
      workdir: a trained run.
      data_dir: where data sets are looked for; None reads MEDROBUST_DATA.
      attack: a name in `config.eval.attacks`; None takes the last.
      eps: the radius; None takes the middle of the attack's grid, rounded up.
      options: see `Options`; None takes its defaults.
      replace: whether rows that were made with other options may be replaced; tables show one kind.
      progress: as in `evaluate`.

    Returns:
      The rows that were written.

    Raises:
      ValueError: preprocessing, a task without a logit per class, an unknown attack, an option out of range,
        or rows of other options that would be replaced.
      FileNotFoundError: no checkpoint, or no saved images.
    """
    started, options = time.monotonic(), options or Options()
    if options.explained not in EXPLAINED:
        did_you_mean(options.explained, EXPLAINED, 'class to explain')
    if config.eval.preprocess:
        raise ValueError('explanations are of the model alone: leave out config.eval.preprocess')
    subject, examples, task = subject_of(config, workdir, data_dir=data_dir)
    check_explainable(task, examples)
    baseline = baseline_image(options.ig_baseline, examples.images)
    layout = make_layout(data_mesh(), width=config.eval.block_width, chunk=config.eval.chunk)
    threat, eps = choose_threat(config, task, attack, eps)
    others = rows_of_other_options(workdir, subject, threat, eps, options)
    if others and not replace:
        theirs = others[0].attack_options
        made = ' '.join(f'--{name}={theirs.get(name)}' for name in _DECIDING)
        raise ValueError(f'{workdir}/results.jsonl holds explanations under {threat.name} at eps {eps:g} that '
                         f'were made with {made}: add --replace to replace them')
    attacked = load_attacked(workdir, threat, eps, subject, examples) if options.saved else craft(
        threat, eps, subject, examples, layout, config.eval.seed, progress)
    keys = rng.example_keys(config.eval.seed, examples.index)
    images = {'clean': examples.images, 'attacked': attacked.images,
              'noise': scatter(keys, examples.images, attacked.images, layout)}
    score = in_chunks(make_score(subject.forward, layout), layout)
    outputs = {name: score(subject.variables, keys, own) for name, own in images.items()}
    classes = {name: outputs['clean' if options.explained == 'clean' else name].argmax(axis=-1) for name in images}
    standing = row_by_row(task.acceptable)(outputs['clean'], examples.targets)
    shown = rows_to_show(task, examples.targets, standing, config.eval.num_pictures)
    program = make_explain(subject.forward, cut_of(config, subject, examples), layout, num_steps=options.ig_steps)
    moved = move(program, (subject.variables, baseline), keys, Versions(images, classes), chunk=layout.chunk,
                 shown=shown)
    answers = [row_by_row(task.predict)(outputs[name]) for name in ('clean', 'attacked')]
    changed = (answers[0] != answers[1]).reshape(len(standing), -1).any(axis=1)
    about = {**options._asdict(), 'attack_seed': config.eval.seed}
    rows = rows_of(subject, examples, attacked, moved, changed, about, layout, time.monotonic() - started)
    save_arrays(Path(workdir) / 'explanations.npz', {**kept(subject, examples, attacked, moved, shown),
                                                     **decisions(task, examples, outputs, classes, shown)})
    outdated = {row.key for row in others}
    records.update_rows(Path(workdir) / 'results.jsonl', rows, keep_fn=lambda row: row.key not in outdated)
    return rows


def rows_of_other_options(workdir: str | Path, subject: Subject, threat: AnyThreat, eps: float, options: Options
                          ) -> list[records.Row]:
    """The rows of this checkpoint's explanations under the attack at eps that other options made."""
    path = Path(workdir) / 'results.jsonl'
    here = {**subject.identity, 'attack': threat.name, 'norm': threat.norm, 'eps': eps}
    wanted = {name: value for name, value in options._asdict().items() if name in _DECIDING}
    return [row for row in (records.read_rows(path) if path.is_file() else [])
            if is_explanation(row.metric) and all(getattr(row, name) == value for name, value in here.items())
            and row.provenance.get('checkpoint_fingerprint') == subject.fingerprints['checkpoint_fingerprint']
            and {name: row.attack_options.get(name) for name in _DECIDING} != wanted]


def check_explainable(task: Task, examples: Examples) -> None:
    """Raises ValueError unless the task has a logit per class or finding, and images are 2-D."""
    if task.name not in TASKS:
        raise ValueError(f"explanations are of one logit per class or finding, and the task '{task.name}' has "
                         f'none: they are made for {" and ".join(TASKS)}')
    if examples.images.ndim != 4:
        raise ValueError(f'explanations are of images [N, H, W, C], not of shape {examples.images.shape}')


def scatter(keys: jax.Array, clean: np.ndarray, attacked: np.ndarray, layout: Layout) -> np.ndarray:
    """The control: the attack's own change in random order, see `noise_of_same_size`."""
    program = jax.jit(lambda _, k, x, y: noise_of_same_size(rng.fold(k, _NOISE), x, y))
    return in_chunks(program, layout)((), keys, clean, attacked)


def cut_of(config: ConfigDict, subject: Subject, examples: Examples) -> Callable[..., Any] | None:
    """The network cut at its last feature maps; None, said in the log, for one that has none."""
    module = build.build_model(config, subject.task)

    def cut(variables: Any, images: jax.Array) -> Any:
        return maps_and_head(module, *variables, images)

    try:
        jax.eval_shape(lambda v, x: cut(v, x)[0], subject.variables, examples.images[:1])
    except ValueError as error:
        logging.warning('%s', error)
        return None
    return cut


def rows_of(subject: Subject, examples: Examples, attacked: Attacked, moved: Moved, changed: np.ndarray,
            options: dict[str, Any], layout: Layout, seconds: float) -> list[records.Row]:
    """The measures as rows; the last one is how complete integrated gradients are."""
    gap = completeness(moved, examples.groups)
    warnings = () if not gap.value > _LARGEST_GAP else (
        f'integrated gradients leave {100 * gap.value:.0f} % of the score unexplained: raise --ig_steps',)
    return records.rows_of(
        {**estimates_of(moved, changed, examples.groups), 'ig_completeness_gap': gap}, **subject.identity,
        attack=attacked.threat.name, norm=attacked.threat.norm, eps=attacked.eps,
        attack_options={**attacked.threat.options, **options}, forward_passes=attacked.forward_passes,
        backward_passes=attacked.backward_passes, warnings=warnings,
        provenance=provenance(**subject.fingerprints, block_width=layout.width, wall_seconds=seconds))


def kept(subject: Subject, examples: Examples, attacked: Attacked, moved: Moved, shown: np.ndarray
         ) -> dict[str, np.ndarray]:
    """The images, maps and measures of the examples that are shown, and the attack."""
    return {'task': np.asarray(subject.task.name), 'index': np.asarray(examples.index)[shown],
            'class_names': np.asarray(subject.class_names, dtype=str), 'attack': np.asarray(attacked.threat.name),
            'norm': np.asarray(attacked.threat.norm), 'eps': np.asarray(attacked.eps),
            'clean': examples.images[shown], 'attacked': attacked.images[shown], **moved.maps,
            **{f'{name}/attacked': own[shown] for name, own in moved.values.items()},
            **{f'{name}/noise': own[shown] for name, own in moved.noise.items()}}


def decisions(task: Task, examples: Examples, outputs: dict[str, np.ndarray], classes: dict[str, np.ndarray],
              shown: np.ndarray) -> dict[str, np.ndarray]:
    """Of the examples that are shown: the class that leads and its probability, the class explained, the truth."""
    found = {'target': np.asarray(examples.targets)[shown]}
    for name in ('clean', 'attacked'):
        logits = outputs[name][shown].astype(np.float64)
        leading = logits.argmax(axis=-1)
        probabilities = softmax(logits, axis=-1) if task.name == 'classification' else expit(logits)
        found |= {f'{name}/prediction': leading, f'{name}/class': classes[name][shown],
                  f'{name}/confidence': np.take_along_axis(probabilities, leading[:, None], axis=-1)[:, 0]}
    return found


if __name__ == '__main__':
    from absl import flags

    from experiments import main
    from medrobust_jax.report.movement import explanation_tables
    from medrobust_jax.report.tables import to_text

    flags.DEFINE_string('attack', None, 'A name in config.eval.attacks; the last of them if not given.')
    flags.DEFINE_float('eps', None, "Its radius; the middle of the attack's grid if not given.")
    flags.DEFINE_bool('saved', False, 'Take the images that experiments.evaluate saved instead of attacking.')
    flags.DEFINE_enum('explained', 'prediction', EXPLAINED, 'The class explained: the one predicted for the image '
                                                            'at hand, or for the clean image both times.')
    flags.DEFINE_integer('ig_steps', 64, 'Steps of integrated gradients.')
    flags.DEFINE_bool('replace', False, 'Replace rows that were made with other options.')
    flags.DEFINE_enum('ig_baseline', 'black', BASELINES, 'What integrated gradients compare with.')

    def work(config: ConfigDict, workdir: str) -> None:
        """Prints the measures."""
        chosen = flags.FLAGS
        rows = explain(config, workdir, data_dir=chosen.data_dir, attack=chosen.attack, eps=chosen.eps,
                       options=Options(chosen.explained, chosen.ig_steps, chosen.ig_baseline, chosen.saved),
                       replace=chosen.replace)
        print('\n'.join(map(to_text, explanation_tables(rows))))

    main.launch(work, device_per_core=True)
