"""Trains a model, fits detectors of attacked images to it, and judges both as one system, in one command.

    python -m experiments.system --config=configs/pneumoniamnist.py:ssat --workdir=runs/ssat \
        --config.data.labeled_fraction=0.1 --config.eval.surrogate=runs/natural

Detectors (`config.eval.system`) are fitted on clean training images, their thresholds calibrated on validation
images, and the risk that a wrong answer reaches the clinic is measured under attackers who do not know the
detector, under transfer from `config.eval.surrogate`, and under attackers who know it. Writes detectors/*.npz,
system.jsonl and report.html; `experiments.report` over several workdirs compares systems. Run again, it goes on
where it stopped: training from its checkpoint, systems that are in system.jsonl are not judged again.
"""
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import build
from experiments.evaluate import evaluate, subject_of
from experiments.report import write_report
from experiments.train import train_and_evaluate
from experiments.training_data import defense_title
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.transfer import transfer
from medrobust_jax.core import rng
from medrobust_jax.core.types import Array, PyTree
from medrobust_jax.data.source import Source, read_batch
from medrobust_jax.detectors.detector import Detector
from medrobust_jax.detectors.registry import SUPERVISED, create_detector
from medrobust_jax.detectors.rejecting import with_rejection
from medrobust_jax.detectors.threshold import Threshold, calibrate
from medrobust_jax.evaluate import system as systems
from medrobust_jax.evaluate.detector_files import load_detector, save_detector
from medrobust_jax.evaluate.programs import Layout, in_chunks, make_layout, make_score
from medrobust_jax.evaluate.provenance import provenance
from medrobust_jax.evaluate.records import Row, read_rows, rows_of, update_rows
from medrobust_jax.evaluate.suite import Examples, Threat
from medrobust_jax.evaluate.system import Found, System
from medrobust_jax.evaluate.writing import Subject
from medrobust_jax.metrics.adversarial_detection import detection_metrics
from medrobust_jax.metrics.intervals import proportion
from medrobust_jax.metrics.risk import Outcomes, nested_outcomes, risk_estimates, worst_of
from medrobust_jax.models.forward import evidence
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.train.checkpoint import load_for_evaluation

ROWS = 'system.jsonl'
NO_DETECTOR = 'none'
UNAWARE, AWARE, WORST = 'worst_unaware', 'aware', 'worst_case'


class Fitted(NamedTuple):
    """A detector with what it was fitted to; `spread` is the standard deviation of held-out clean scores."""

    name: str
    options: dict[str, Any]
    detector: Detector
    state: PyTree
    threshold: Threshold
    spread: float


class Bench(NamedTuple):
    """What all systems of a run share."""

    config: ConfigDict
    workdir: Path
    subject: Subject
    module: Any
    examples: Examples
    layout: Layout
    seed: int


def judge_systems(config: ConfigDict, workdir: str | Path, *, data_dir: str | None = None,
                  progress: bool | None = None) -> list[Row]:
    """Judges the model in `workdir` with no detector and with each of `config.eval.system.detectors`.

    Args:
      config: the config that the workdir was trained with; its 'eval' part may differ.
      workdir: a folder that `train_and_evaluate` filled.
      data_dir: where data sets are looked for; None reads MEDROBUST_DATA.
      progress: True to log each system, None and False not to.

    Returns:
      All rows of system.jsonl.

    Raises:
      ValueError: for another task than classification, with preprocessing, or for an attack of
        `config.eval.system.attacks` that `config.eval.attacks` lacks.
    """
    subject, examples, task = subject_of(config, workdir, data_dir=data_dir)
    if task.name != 'classification':
        raise ValueError(f"systems with a detector are judged on classification, not on '{task.name}'")
    if config.eval.preprocess:
        raise ValueError('config.eval.preprocess stands before a model, a detector beside it: judge one at a time')
    layout = make_layout(data_mesh(), width=config.eval.block_width, chunk=config.eval.chunk)
    bench = Bench(config, Path(workdir), subject, build.build_model(config, task), examples, layout,
                  config.eval.seed)
    known = [build.load_split(config, split, data_dir)
             for split in (config.data.train_split, config.data.validation_split)]
    blind: dict[str, list[Found]] = {}
    for name, options in ((NO_DETECTOR, {}), *config.eval.system.detectors):
        label = subject.identity['defense'] + ('' if name == NO_DETECTOR else f'+{name}')
        if _is_judged(bench, label):
            continue
        fitted = None if name == NO_DETECTOR else _fitted(bench, name, dict(options), *known)
        if not blind:
            blind = blind_attacks(bench)
        rows = _rows(bench, label, fitted, _attacked(bench, fitted, blind, known[0]))
        update_rows(bench.workdir / ROWS, rows)
        if progress:
            worst = [row for row in rows if (row.attack, row.metric) == (WORST, 'risk_system')]
            logging.info('%s: risk %s', label, ', '.join(f'{row.value:.3f} at {row.eps:.4f}' for row in worst))
    return read_rows(bench.workdir / ROWS)


def _is_judged(bench: Bench, label: str) -> bool:
    """Whether system.jsonl holds the worst case of this system, of this very checkpoint and all radii."""
    path = bench.workdir / ROWS
    rows = read_rows(path) if path.is_file() else []
    found = {row.eps for row in rows if (row.defense, row.attack) == (label, WORST) and
             row.provenance.get('checkpoint_fingerprint') == bench.subject.fingerprints['checkpoint_fingerprint']}
    return set(map(float, bench.config.eval.eps)) <= found


def system_of(bench: Bench, fitted: Fitted | None) -> System:
    """The model with a detector; without one every image is accepted."""
    module = bench.module

    def plain(variables: PyTree, images: Array, keys: Array) -> dict[str, Array]:
        seen = evidence(module, *variables, images)
        return {'logits': seen['logits'], 'features': seen['features'], 'score': seen['logits'][:, 0] * 0}

    if fitted is None:
        return System(plain, bench.subject.variables, bench.subject.task, -np.inf, 1.0)
    detector, tau = fitted.detector, fitted.threshold.tau

    def forward(variables: PyTree, images: Array, keys: Array) -> dict[str, Array]:
        params, model_state, state = variables
        forward_evidence = partial(evidence, module, params, model_state)
        outputs = with_rejection(forward_evidence, detector, state, tau)(images, keys)
        return {name: outputs[name] for name in ('logits', 'features', 'score')}

    return System(forward, (*bench.subject.variables, fitted.state), bench.subject.task, tau, fitted.spread)


def blind_attacks(bench: Bench) -> dict[str, list[Found]]:
    """What attackers who do not know any detector find, by the attack's name, over the eps grid."""
    chosen = bench.config.eval.system.attacks
    missing = [name for name in chosen if name not in bench.config.eval.attacks]
    if missing:
        raise ValueError(f'config.eval.system.attacks names {", ".join(missing)}, which config.eval.attacks '
                         f'lacks: it has {", ".join(bench.config.eval.attacks)}')
    specs = {name: bench.config.eval.attacks[name] for name in chosen}
    threats: list[Any] = build.build_threats(specs, bench.subject.task)
    if bench.config.eval.surrogate:
        threats.append(_transfer(bench))
    return {threat.name: systems.blind_attack(system_of(bench, None), threat, bench.examples,
                                              tuple(bench.config.eval.eps), layout=bench.layout, seed=bench.seed)
            for threat in threats}


def _transfer(bench: Bench) -> Threat:
    """PGD on another run's model, whose outputs take the form of a system's."""
    surrogate, metadata = build.trained_model(bench.config.eval.surrogate, bench.subject.task)
    system = system_of(bench, None)
    forms = jax.eval_shape(system.forward, system.variables, bench.examples.images[:1],
                           rng.example_keys(0, np.zeros(1, np.int32)))

    def forward(images: Array, keys: Array) -> dict[str, Array]:
        logits = surrogate(images)
        unused = {name: logits.sum(axis=1).reshape(-1, *[1] * (len(forms[name].shape) - 1)) * 0
                  + np.zeros(forms[name].shape[1:], logits.dtype) for name in ('features', 'score')}
        return {'logits': logits, **unused}

    name = f'transfer_{metadata["config"]["defense"]["name"]}'
    about = {'attack': 'transfer', 'surrogate_fingerprint': metadata['checkpoint_fingerprint']}
    return Threat(name, transfer(pgd(num_steps=bench.config.eval.surrogate_steps), forward), options=about)


def _evidence_of(bench: Bench, images: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """What detectors read of `images`, on the host."""
    module = bench.module
    forward = lambda variables, x, keys: evidence(module, *variables, x)  # noqa: E731
    keys = rng.example_keys(bench.seed, rows)
    return in_chunks(make_score(forward, bench.layout), bench.layout)(bench.subject.variables, keys, images)


def _fitted(bench: Bench, name: str, options: dict[str, Any], train: Source, validation: Source) -> Fitted:
    """The detector `name`: read from its file, or fitted, calibrated and saved there."""
    chosen, path = bench.config.eval.system, bench.workdir / 'detectors' / f'{name}.npz'
    detector = create_detector(name, forward_evidence=partial(evidence, bench.module, *bench.subject.variables),
                               **options)
    checkpoint = bench.subject.fingerprints['checkpoint_fingerprint']
    if path.is_file():
        saved = load_detector(path, checkpoint_fingerprint=checkpoint)
        if saved.threshold and (saved.options, saved.threshold.allowed) == (options, chosen.false_alarm_rate):
            return Fitted(name, options, detector, saved.state, saved.threshold, saved.provenance['spread'])
    rows = np.arange(min(len(train), chosen.max_fit))
    known = read_batch(train, rows)
    state = detector.fit(_evidence_of(bench, known['image'], rows), known['label'], jax.random.key(bench.seed))
    held_out = read_batch(validation, np.arange(len(validation)))
    rows = np.arange(len(validation))
    seen = _evidence_of(bench, held_out['image'], rows)
    if name in SUPERVISED:
        # One half to learn from, attacked and not; the threshold is calibrated on the other.
        assert detector.fit_adversarial is not None
        learned, rows = rows[::2], rows[1::2]
        attacked = _attacked_evidence(bench, held_out, learned)
        state = detector.fit_adversarial(state, _take(seen, learned), attacked)
    scores = np.asarray(jax.jit(detector.score)(state, _take(seen, rows)))
    groups = held_out['group'][rows] if 'group' in held_out else None
    threshold = calibrate(scores, false_alarm_rate=chosen.false_alarm_rate, groups=groups)
    spread = max(float(scores.std()), 1e-6)
    origin = {**provenance(**bench.subject.fingerprints), 'spread': spread}
    save_detector(path, name, options, state, threshold, origin)
    return Fitted(name, options, detector, state, threshold, spread)


def _attacked_evidence(bench: Bench, held_out: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """The evidence of validation images under PGD at the validation's eps, to learn from."""
    examples = Examples(held_out['image'][rows], held_out['label'][rows], rows)
    threat = Threat('pgd', pgd(num_steps=bench.config.validation.num_steps))
    (found,) = systems.blind_attack(system_of(bench, None), threat, examples, (bench.config.validation.eps,),
                                    layout=bench.layout, seed=bench.seed)
    return _evidence_of(bench, found.images, rows)


def _take(tree: PyTree, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _attacked(bench: Bench, fitted: Fitted | None, blind: dict[str, list[Found]], train: Source
              ) -> dict[str, list[Found]]:
    """What every attack does to one system, over the eps grid; key 'clean' holds the images as they are."""
    system, shared = system_of(bench, fitted), {'layout': bench.layout, 'seed': bench.seed}
    labels = np.asarray(bench.examples.targets)
    outputs = systems.outputs_of(system, bench.examples, **shared)
    clean = Found(0.0, systems.judged(system, outputs, labels), outputs['score'], bench.examples.images)
    found = {'clean': [clean]}
    for name, points in blind.items():
        found[name] = [systems.rejudged(system, point, bench.examples, **shared) for point in points]
    if fitted is not None:
        chosen = bench.config.eval.system
        guides = None
        if chosen.num_guides:
            rows = np.arange(min(len(train), chosen.max_fit))
            seen = systems.outputs_of(system, Examples(read_batch(train, rows)['image'], None, rows), **shared)
            accepted = seen['score'] >= system.tau
            known = {'features': seen['features'][accepted], 'prediction': seen['logits'].argmax(1)[accepted]}
            guides = systems.guides_for(outputs['features'], labels, known, count=chosen.num_guides)
        found[AWARE] = systems.aware_attack(
            system, bench.examples, tuple(bench.config.eval.eps), guides=guides, num_steps=chosen.aware_steps,
            num_rounds=chosen.aware_rounds, **shared)
    return found


def _rows(bench: Bench, label: str, fitted: Fitted | None, found: dict[str, list[Found]]) -> list[Row]:
    """One system's risks and detection rates under every attack, and under the worst per image."""
    groups, (clean,) = bench.examples.groups, found['clean']
    tau = -np.inf if fitted is None else fitted.threshold.tau
    rejected_clean = ~(clean.score >= tau)
    evidence_of_run = {**provenance(**bench.subject.fingerprints, block_width=bench.layout.width)}
    if fitted is not None:
        evidence_of_run['detector'] = {'name': fitted.name, 'options': fitted.options, 'tau': tau,
                                       'false_alarms_on_validation': fitted.threshold.false_alarms.value}
    identity = {**bench.subject.identity, 'defense': label}
    rows: list[Row] = []

    def add(attack: str, eps: float, outcomes: Outcomes, more: dict[str, Any], options: dict[str, Any]) -> None:
        estimates = {**risk_estimates(outcomes, rejected_clean, groups), **more}
        rows.extend(rows_of(estimates, **identity, attack=attack, norm='linf' if eps else '', eps=eps,
                            attack_options=options, provenance=evidence_of_run))

    add('clean', 0.0, clean.outcomes, {'false_alarms': proportion(rejected_clean, groups)}, {})
    curves = {name: nested_outcomes([point.outcomes for point in (clean, *points)])[1:]
              for name, points in found.items() if name != 'clean'}
    options = _options(bench)
    for name, points in found.items():
        for point, outcomes in zip(points, curves.get(name, ()), strict=False):
            more = {} if fitted is None else _detected(clean, point, tau, groups)
            add(name, point.eps, outcomes, more, options.get(name, {'attack': name}))
    unaware = [name for name in curves if name != AWARE]
    for position, point in enumerate(next(iter(found[name] for name in unaware))):
        for name, members in ((UNAWARE, unaware), (WORST, list(curves))):
            add(name, point.eps, worst_of([curves[each][position] for each in members]), {}, {'attacks': members})
    return rows


def _options(bench: Bench) -> dict[str, dict[str, Any]]:
    chosen = bench.config.eval.system
    return {AWARE: {'attack': 'apgd', 'num_steps': chosen.aware_steps, 'num_rounds': chosen.aware_rounds,
                    'num_guides': chosen.num_guides}}


def _detected(clean: Found, point: Found, tau: float, groups: np.ndarray | None) -> dict[str, Any]:
    """How the detector fares on the images that fool the classifier."""
    rows = np.flatnonzero(point.outcomes.wrong)
    if not len(rows):
        return {}
    rates = detection_metrics(clean.score, point.score[rows], groups, rows=rows)
    return {f'detection_{name}': estimate for name, estimate in rates.items()} | {
        'rejected': proportion(~(point.score[rows] >= tau), None if groups is None else groups[rows])}


def run(config: ConfigDict, workdir: str | Path, *, data_dir: str | None = None) -> Path:
    """Trains, evaluates, judges the systems, and writes the report; returns its path."""
    train_and_evaluate(config, workdir, data_dir=data_dir)
    results = Path(workdir) / 'results.jsonl'
    fingerprint = load_for_evaluation(workdir, config.eval.checkpoint)[2]['checkpoint_fingerprint']
    known = read_rows(results) if results.is_file() else []
    if not any(row.provenance.get('checkpoint_fingerprint') == fingerprint for row in known):
        evaluate(config, workdir, data_dir=data_dir)
    judge_systems(config, workdir, data_dir=data_dir, progress=True)
    out = Path(workdir) / 'report.html'
    write_report([workdir], out, title=f'{config.data.name}: {defense_title(config)}, with and without a detector')
    return out


if __name__ == '__main__':
    from absl import flags

    from experiments import main

    main.launch(lambda config, workdir: print(f'Report: {run(config, workdir, data_dir=flags.FLAGS.data_dir)}'),
                device_per_core=True)
