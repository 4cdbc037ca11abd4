"""From a config to what stands before the model in an evaluation: `config.eval.preprocess`, its gradient and EOT.

Contents: `Chosen`, `preprocessors_of`, `before`, `described`, `recorded`, `averaged`, `folder_of`, `file_name`.

What is reported of a deterministic preprocessor is what is reported of any model. Of a random one:

* 'robust_accuracy': the share of images on which most of `config.eval.eot_samples` fresh passes are
  right, at every image that the attack looked at (and the one clean pass too);
* 'accuracy' and what else is made of decisions: one fresh pass over the strongest image, with draws
  that the attack never saw. With `config.eval.stop_when_fooled` that image is the first that most
  passes get wrong; set it to False for the one of the highest mean loss.
"""
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments.training_data import defense_title
from medrobust_jax.attacks.wrappers import averaged_over
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.transforms import identity
from medrobust_jax.core.types import Task
from medrobust_jax.evaluate.suite import Ensemble
from medrobust_jax.evaluate.writing import AnyThreat, Subject
from medrobust_jax.models.forward import apply_model
from medrobust_jax.models.preprocess import (
    PREPROCESSORS,
    Preprocessor,
    create_preprocessor,
    denoiser,
    preprocessed,
    usable_gradient,
)
from medrobust_jax.models.registry import create_model
from medrobust_jax.train.checkpoint import load_for_evaluation

DENOISER = 'denoiser'  # the one preprocessor that is trained: its option names a workdir
# Attacks that ask the victim for its loss alone, and so can be given an averaged one.
AVERAGED = ('fgsm', 'ifgsm', 'pgd', 'pgd_adam', 'pgd_margin', 'mi_fgsm', 'di_fgsm', 'ti_fgsm', 'pgd_adamax',
            'smia', 'apgd', 'noise', 'square', 'nes', 'spsa')


class Chosen(NamedTuple):
    """A preprocessor of the config.

    Attributes:
      name: as configs spell it.
      options: plain values for the record.
      made: the preprocessor.
      backward: the gradient that attacks see, one of `models.preprocess.BACKWARD`.
    """

    name: str
    options: Mapping[str, Any]
    made: Preprocessor
    backward: str


def preprocessors_of(config: ConfigDict) -> tuple[Chosen, ...]:
    """What `config.eval.preprocess` names, in the order in which images pass through it.

    Raises:
      ValueError: for an unknown name, option or gradient, or a negative number of passes to average over.
    """
    if config.eval.eot_samples < 0:
        raise ValueError(f'config.eval.eot_samples = {config.eval.eot_samples} must be at least 0')
    found = []
    for entry in config.eval.preprocess:
        if len(entry) != 2 or not isinstance(entry[0], str):
            raise ValueError(f'config.eval.preprocess holds {entry!r}: each entry is a pair of a name and '
                             f"options, such as ('jpeg', {{'quality': 75}})")
        name, options = entry[0], dict(entry[1])
        if name != DENOISER and name not in PREPROCESSORS:
            did_you_mean(name, (*PREPROCESSORS, DENOISER), 'preprocessor in config.eval.preprocess')
        if name == DENOISER:
            made, options = _trained(**options)
        else:
            made = create_preprocessor(name, **options)
        found.append(Chosen(name, options, made, usable_gradient(made, config.eval.preprocess_gradient)))
    return tuple(found)


def _trained(workdir: str = '', **others: Any) -> tuple[Preprocessor, dict[str, Any]]:
    """The denoiser that `experiments.train_denoiser` left in a workdir; recorded by its fingerprint."""
    if others:
        did_you_mean(next(iter(others)), ['workdir'], f"option of preprocessor '{DENOISER}'")
    if not workdir:
        raise ValueError("the preprocessor 'denoiser' needs the workdir of experiments.train_denoiser: "
                         "('denoiser', {'workdir': 'runs/denoiser'})")
    params, model_state, metadata = load_for_evaluation(workdir, 'best')
    trained = metadata['config'].get(DENOISER)
    if trained is None:
        raise ValueError(f'{workdir} holds no denoiser: train one with experiments.train_denoiser')
    model = apply_model(create_model('dncnn', trained['num_outputs'], **trained['options']))

    def network(images: jax.Array) -> jax.Array:
        return model(params, model_state, images, batch_norm='eval')[0]
    return denoiser(network), {'fingerprint': metadata['checkpoint_fingerprint'][:8]}


def before(forward: Callable[..., Any], chosen: Sequence[Chosen]) -> Callable[..., Any]:
    """`forward` behind the preprocessors, the first of them first."""
    for each in reversed(chosen):
        forward = preprocessed(forward, each.made.apply, backward=each.backward)
    return forward


def is_random(chosen: Sequence[Chosen]) -> bool:
    """Whether any of them draws."""
    return any(each.made.random for each in chosen)


def described(config: ConfigDict, chosen: Sequence[Chosen]) -> str:
    """The name of the system in tables and rows: 'natural+jpeg(quality=75)'.

    It tells apart what must not replace each other: options given, a gradient other than 'auto', attacks on a
    random preprocessor that average over nothing.
    """
    parts = [defense_title(config)]
    for each in chosen:
        options = ', '.join(f'{name}={value}' for name, value in each.options.items())
        parts.append(each.name + (f'({options})' if options else ''))
    remarks = [f'{config.eval.preprocess_gradient} gradient'] * (config.eval.preprocess_gradient != 'auto')
    remarks += ['no EOT'] * (is_random(chosen) and not config.eval.eot_samples)
    return '+'.join(parts) + (f" [{', '.join(remarks)}]" if chosen and remarks else '')


def recorded(config: ConfigDict, chosen: Sequence[Chosen]) -> dict[str, Any]:
    """What the provenance of a row says of preprocessing; empty without any."""
    if not chosen:
        return {}
    steps = [{'name': each.name, **each.options, 'gradient': each.backward} for each in chosen]
    return {'preprocess': steps, **({'eot_samples': config.eval.eot_samples} if is_random(chosen) else {})}


def folder_of(subject: Subject, workdir: str | Path) -> Path:
    """Where an evaluation leaves verdicts and pictures: the workdir or, with preprocessing, a folder in it."""
    if not subject.setting:
        return Path(workdir)
    return Path(workdir) / 'preprocessed' / file_name(subject.identity['defense'])


def file_name(described: str) -> str:
    """What a system is called, without the signs that a shell reads."""
    return re.sub(r'[^\w.=+-]+', '_', described).strip('_')


def averaged(threats: Sequence[AnyThreat], task: Task, *, num_samples: int) -> list[AnyThreat]:
    """The threats, each averaged over `num_samples` passes and judged by their majority; 0 leaves them alone.

    AutoAttack's version 'rand' averages by itself.

    Raises:
      ValueError: for an attack that cannot average.
    """
    if not num_samples:
        return list(threats)
    found: list[AnyThreat] = []
    for threat in threats:
        kind = threat.options.get('attack')
        if isinstance(threat, Ensemble) or kind not in AVERAGED:
            if threat.options.get('version') != 'rand':
                raise ValueError(f"config.eval.attacks.{threat.name}: '{kind}' does not average over the draws of "
                                 f"a random preprocessor; {', '.join(AVERAGED)} and AutoAttack's version 'rand' "
                                 f'do. config.eval.eot_samples=0 attacks single draws: a control')
            found.append(threat)
            continue
        if kind == 'smia' and task.name != 'classification' and 'stabilization' not in threat.options:
            raise ValueError(f"config.eval.attacks.{threat.name}: averaged over draws, 'smia' needs its option "
                             f"stabilization, 'kl' or 'squared_error', on the task '{task.name}'")
        attack = averaged_over(threat.attack, identity, num_samples=num_samples, majority=True)
        found.append(threat._replace(attack=attack, options={**threat.options, 'eot_samples': num_samples}))
    return found
