"""Trains a model, fits detectors of attacked images to it, and judges both as one system, in one command.

    python -m experiments.system --config=configs/pneumoniamnist.py:ssat --workdir=runs/ssat \
        --config.data.labeled_fraction=0.1 --config.eval.surrogate=runs/natural

Detectors (`config.eval.system`) are fitted on clean training images, their thresholds calibrated on validation
images, and the risk that a wrong answer reaches the clinic is measured under attackers who do not know the
detector, under transfer from `config.eval.surrogate`, and under attackers who know it. Writes detectors/*.npz,
systems/*.npz (every image's outcome), system.jsonl and report.html; `experiments.report` over several workdirs
shows systems side by side, `experiments.compare_systems` their paired differences. Run again, it goes on where it
stopped: training from its checkpoint, and a system that system.jsonl holds with the same settings is not judged
again.
"""
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import build
from experiments.attacked_systems import AWARE, Bench, attack_system, blind_attacks, system_of
from experiments.evaluate import evaluate, is_evaluated, subject_of
from experiments.fitted_detectors import Fitted, Known, fitted_detector
from experiments.report import write_report
from experiments.train import train_and_evaluate
from experiments.training_data import TrainingData, defense_title, load_training_data
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.registry import norm_of_attack
from medrobust_jax.core import rng
from medrobust_jax.detectors.registry import create_detector
from medrobust_jax.evaluate import system as systems
from medrobust_jax.evaluate.files import plain
from medrobust_jax.evaluate.programs import in_chunks, make_layout, make_score
from medrobust_jax.evaluate.provenance import provenance
from medrobust_jax.evaluate.records import Row, read_rows, rows_of, update_rows
from medrobust_jax.evaluate.suite import Examples, Threat
from medrobust_jax.evaluate.system import Found
from medrobust_jax.evaluate.system_outcomes import SystemOutcomes, holds_outcomes, save_outcomes
from medrobust_jax.metrics.adversarial_detection import detection_metrics
from medrobust_jax.metrics.intervals import proportion
from medrobust_jax.metrics.risk import Outcomes, nested_outcomes, risk_estimates, worst_of
from medrobust_jax.models.forward import evidence
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.train.checkpoint import load_for_evaluation

ROWS = 'system.jsonl'
NO_DETECTOR = 'none'
UNAWARE, WORST = 'worst_unaware', 'worst_case'
_LEAST = {'aware_steps': 1, 'aware_rounds': 1, 'num_guides': 0, 'max_fit': 1}  # of config.eval.system


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
      ValueError: for what `check_system` refuses; and, after all others have
        been judged, for detectors that could not be fitted.
    """
    check_system(config)
    subject, examples, task = subject_of(config, workdir, data_dir=data_dir)
    surrogate = config.eval.surrogate
    bench = Bench(
        config, Path(workdir), subject, build.build_model(config, task), examples,
        make_layout(data_mesh(), width=config.eval.block_width, chunk=config.eval.chunk), config.eval.seed,
        load_for_evaluation(surrogate, 'best')[2]['checkpoint_fingerprint'] if surrogate else '')
    known = _known(bench, load_training_data(config, data_dir), data_dir)
    blind: dict[str, list[Found]] = {}
    failed = []
    for name, options in ((NO_DETECTOR, {}), *config.eval.system.detectors):
        label = subject.identity['defense'] + ('' if name == NO_DETECTOR else f'+{name}')
        settings = _settings(bench, name, dict(options))
        if _is_judged(bench, name, label, settings):
            continue
        try:
            fitted = None if name == NO_DETECTOR else _fitted(bench, name, dict(options), known)
        except ValueError as error:
            logging.warning('%s is left out: %s', label, error)
            failed.append(f'{name} ({error})')
            continue
        if not blind:
            blind = blind_attacks(bench)
        found, num_guides = attack_system(bench, fitted, blind, known)
        curves = _curves(found)
        rows = _rows(bench, label, fitted, found, curves, settings, num_guides)
        save_outcomes(bench.workdir, name, SystemOutcomes(
            label, np.asarray([point.eps for point in found[AWARE]]), bench.examples.index, bench.examples.groups,
            _worst(curves, list(curves)), settings))
        update_rows(bench.workdir / ROWS, rows, keep_fn=lambda row, new=rows[0]: not _is_outdated(row, new))
        if progress:
            worst = [row for row in rows if (row.attack, row.metric) == (WORST, 'risk_system')]
            logging.info('%s: risk %s', label, ', '.join(f'{row.value:.3f} at {row.eps:.4f}' for row in worst))
    if failed:
        raise ValueError('judged, but for detectors that could not be fitted to this model: ' + '; '.join(failed))
    return read_rows(bench.workdir / ROWS)


def check_system(config: ConfigDict) -> None:
    """Refuses settings of `config.eval.system` that cannot be meant, before anything is trained.

    Raises:
      ValueError: for another task than classification, preprocessing beside detectors, numbers out of range,
        detectors that are unknown, have options that are, or come twice, or attacks that are unknown, no single
        attacks, of another norm than Linf, or of radii of their own.
    """
    if config.task.name != 'classification':
        raise ValueError(f"systems with a detector are judged on classification, not on '{config.task.name}'")
    if config.eval.preprocess:
        raise ValueError('config.eval.preprocess stands before a model, a detector beside it: judge one at a time')
    _check_numbers(config)
    _check_detectors(config.eval.system.detectors)
    chosen = config.eval.system.attacks
    missing = [name for name in chosen if name not in config.eval.attacks]
    if missing or not (chosen or config.eval.surrogate):
        raise ValueError(f'config.eval.system.attacks names {", ".join(missing) or "nothing"}, which '
                         f'config.eval.attacks lacks: it has {", ".join(config.eval.attacks)}')
    bad = [name for name in chosen if not _is_simple(config.eval.attacks[name])]
    if bad:
        raise ValueError(f'config.eval.system.attacks: {", ".join(bad)} cannot serve; single Linf attacks on '
                         'config.eval.eps do')


def _check_numbers(config: ConfigDict) -> None:
    for name, least in _LEAST.items():
        if config.eval.system[name] < least:
            raise ValueError(f'config.eval.system.{name} = {config.eval.system[name]} must be at least {least}')
    if config.eval.surrogate and config.eval.surrogate_steps < 1:
        raise ValueError(f'config.eval.surrogate_steps = {config.eval.surrogate_steps} must be at least 1')
    rate = config.eval.system.false_alarm_rate
    if not 0 <= rate < 1:
        raise ValueError(f'config.eval.system.false_alarm_rate = {rate} must lie in [0, 1): 0.05 rejects 5 % of '
                         'clean images')


def _check_detectors(detectors: Sequence[Any]) -> None:
    if not all(isinstance(each, Sequence) and len(each) == 2 for each in detectors):
        raise ValueError(f'config.eval.system.detectors = {detectors} must be pairs of a name and options, e.g. '
                         '(("gaussian", {}),)')
    names = [name for name, _ in detectors]
    if len(set(names)) < len(names) or NO_DETECTOR in names:
        raise ValueError(f'config.eval.system.detectors are called {names}: each name once, none of '
                         f'them "{NO_DETECTOR}"')
    for name, options in detectors:
        try:  # what the model computes is asked for when a detector is fitted, not when it is made
            create_detector(name, forward_evidence=lambda images: {}, **dict(options))
        except (TypeError, ValueError) as error:
            raise ValueError(f'config.eval.system.detectors, {name}: {error}') from error


def _is_simple(spec: ConfigDict) -> bool:
    """Whether an attack is a single one in Linf balls of the evaluation's radii."""
    return (spec.attack not in build.ENSEMBLES and not spec.eps
            and norm_of_attack(spec.attack, spec.options.to_dict()) == 'linf')


def _settings(bench: Bench, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All that decides a system's rows besides the checkpoint, as JSON holds it."""
    chosen = bench.config.eval
    values = {'detector': [name, options], 'split': chosen.split, 'seed': chosen.seed,
              'surrogate': [bench.surrogate, chosen.surrogate_steps],
              'system': {key: value for key, value in chosen.system.to_dict().items() if key != 'detectors'},
              'attacks': {each: chosen.attacks[each].to_dict() for each in chosen.system.attacks},
              'num_examples': len(bench.examples.index), **bench.subject.fingerprints}
    return plain(values)


def _is_judged(bench: Bench, name: str, label: str, settings: dict[str, Any]) -> bool:
    """Whether rows and outcomes of this system with these settings at all radii are there."""
    if not holds_outcomes(bench.workdir, name, label, settings, bench.config.eval.eps):
        return False
    path = bench.workdir / ROWS
    rows = read_rows(path) if path.is_file() else []
    found = {row.eps for row in rows if (row.defense, row.attack) == (label, WORST)
             and row.provenance.get('settings') == settings}
    return set(map(float, bench.config.eval.eps)) <= found


def _is_outdated(row: Row, new: Row) -> bool:
    """Whether a row is of the new one's system under other settings: its attack may be in no worst case now."""
    return row.subject == new.subject and row.provenance.get('settings') != new.provenance['settings']


def _known(bench: Bench, data: TrainingData, data_dir: str | None) -> Known:
    """What detectors may be fitted on."""
    module, variables, config = bench.module, bench.subject.variables, bench.config
    forward = lambda variables, images, keys: evidence(module, *variables, images)  # noqa: E731
    score = in_chunks(make_score(forward, bench.layout), bench.layout)

    def evidence_of(images: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
        return score(variables, rng.example_keys(bench.seed, rows), images)

    def attacked(images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
        threat = Threat('pgd', pgd(num_steps=config.validation.num_steps))
        (found,) = systems.blind_attack(system_of(bench, None), threat, Examples(images, labels, rows),
                                        (config.validation.eps,), layout=bench.layout, seed=bench.seed)
        return evidence_of(found.images, rows)

    return Known(partial(evidence, module, *variables), evidence_of, attacked, data.whole, data.labeled,
                 build.load_split(config, config.data.validation_split, data_dir), bench.seed,
                 config.eval.system.max_fit)


def _fitted(bench: Bench, name: str, options: dict[str, Any], known: Known) -> Fitted:
    chosen = bench.config.eval.system
    origin = {'checkpoint_fingerprint': bench.subject.fingerprints['checkpoint_fingerprint'], 'seed': bench.seed,
              'max_fit': chosen.max_fit, 'fitted_on': known.images.info.fingerprint,
              'calibrated_on': known.held_out.info.fingerprint}
    return fitted_detector(name, options, known, path=bench.workdir / 'detectors' / f'{name}.npz', origin=origin,
                           false_alarm_rate=chosen.false_alarm_rate)


def _curves(found: dict[str, list[Found]]) -> dict[str, list[Outcomes]]:
    """Of every attack its outcomes over the grid; what was done in a smaller ball counts in every larger one."""
    (clean,) = found['clean']
    return {name: nested_outcomes([point.outcomes for point in (clean, *points)])[1:]
            for name, points in found.items() if name != 'clean'}


def _worst(curves: dict[str, list[Outcomes]], members: list[str]) -> list[Outcomes]:
    return [worst_of(at_eps) for at_eps in zip(*(curves[name] for name in members), strict=True)]


def _rows(bench: Bench, label: str, fitted: Fitted | None, found: dict[str, list[Found]],
          curves: dict[str, list[Outcomes]], settings: dict[str, Any], num_guides: int) -> list[Row]:
    """One system's risks and detection rates under every attack, and under the worst per image."""
    groups, (clean,) = bench.examples.groups, found['clean']
    tau = -np.inf if fitted is None else fitted.threshold.tau
    rejected_clean = ~(clean.score >= tau)
    about: dict[str, Any] = {**provenance(**bench.subject.fingerprints, block_width=bench.layout.width),
                             'settings': settings}
    if fitted is not None:
        about['detector'] = {'name': fitted.name, 'options': fitted.options, 'tau': tau,
                             'false_alarms_on_validation': fitted.threshold.false_alarms.value}
    identity = {**bench.subject.identity, 'defense': label}
    rows: list[Row] = []

    def add(attack: str, eps: float, outcomes: Outcomes, more: dict[str, Any], options: dict[str, Any]) -> None:
        estimates = {**risk_estimates(outcomes, rejected_clean, groups), **more}
        rows.extend(rows_of(estimates, **identity, attack=attack, norm='linf' if eps else '', eps=eps,
                            attack_options=options, provenance=about))

    add('clean', 0.0, clean.outcomes, {'false_alarms': proportion(rejected_clean, groups)}, {})
    chosen = bench.config.eval.system
    aware = {'attack': 'apgd', 'num_steps': chosen.aware_steps, 'num_rounds': chosen.aware_rounds,
             'num_guides': num_guides}
    for name, outcomes_by_eps in curves.items():
        for point, outcomes in zip(found[name], outcomes_by_eps, strict=True):
            more = {} if fitted is None else _detected(clean, point, tau, groups)
            add(name, point.eps, outcomes, more, aware if name == AWARE else {'attack': name})
    for name, members in ((UNAWARE, [each for each in curves if each != AWARE]), (WORST, list(curves))):
        for point, outcomes in zip(found[AWARE], _worst(curves, members), strict=True):
            add(name, point.eps, outcomes, {}, {'attacks': members})
    return rows


def _detected(clean: Found, point: Found, tau: float, groups: np.ndarray | None) -> dict[str, Any]:
    """How the detector fares on the images that an attack made wrong, without those wrong as they are."""
    rows = np.flatnonzero(point.outcomes.wrong & ~clean.outcomes.wrong)
    if not len(rows):
        return {}
    rates = detection_metrics(clean.score, point.score[rows], groups, rows=rows)
    return {f'detection_{name}': estimate for name, estimate in rates.items()} | {
        'rejected': proportion(~(point.score[rows] >= tau), None if groups is None else groups[rows])}


def run(config: ConfigDict, workdir: str | Path, *, data_dir: str | None = None) -> Path:
    """Trains, evaluates, judges the systems, and writes the report; returns its path."""
    check_system(config)
    train_and_evaluate(config, workdir, data_dir=data_dir)
    if not is_evaluated(config, workdir, data_dir=data_dir):
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
