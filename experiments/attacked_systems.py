"""What attackers do to a model with a detector: those who do not know it, and those who do.

Contents: `Bench`, what all systems of a run share; `system_of`; `blind_attacks`; `attack_system`.

Example:

    blind = blind_attacks(bench)                               # once, on the model alone
    found, num_guides = attack_system(bench, fitted, blind, known)  # what all attacks do to one system
"""
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import build
from experiments.evaluate import transfer_from
from experiments.fitted_detectors import Fitted, Known, scores_of
from medrobust_jax.core import rng
from medrobust_jax.core.types import Array, PyTree
from medrobust_jax.detectors.rejecting import with_rejection
from medrobust_jax.evaluate import system as systems
from medrobust_jax.evaluate.programs import Layout
from medrobust_jax.evaluate.suite import Examples, Threat
from medrobust_jax.evaluate.system import Found, System
from medrobust_jax.evaluate.writing import Subject
from medrobust_jax.models.forward import evidence

AWARE = 'aware'


class Bench(NamedTuple):
    """What all systems of a run share."""

    config: ConfigDict
    workdir: Path
    subject: Subject
    module: Any
    examples: Examples
    layout: Layout
    seed: int
    surrogate: str  # fingerprint of its checkpoint; empty for none


def system_of(bench: Bench, fitted: Fitted | None) -> System:
    """The model with a detector; without one every image is accepted."""
    module = bench.module

    def plain_model(variables: PyTree, images: Array, keys: Array) -> dict[str, Array]:
        seen = evidence(module, *variables, images)
        return {'logits': seen['logits'], 'features': seen['features'], 'score': seen['logits'][:, 0] * 0}

    if fitted is None:
        return System(plain_model, bench.subject.variables, bench.subject.task, -np.inf, 1.0)
    detector, tau = fitted.detector, fitted.threshold.tau

    def forward(variables: PyTree, images: Array, keys: Array) -> dict[str, Array]:
        params, model_state, state = variables
        forward_evidence = partial(evidence, module, params, model_state)
        outputs = with_rejection(forward_evidence, detector, state, tau)(images, keys)
        return {name: outputs[name] for name in ('logits', 'features', 'score')}

    return System(forward, (*bench.subject.variables, fitted.state), bench.subject.task, tau, fitted.spread)


def blind_attacks(bench: Bench) -> dict[str, list[Found]]:
    """What attackers who do not know any detector find, by the attack's name, over the eps grid."""
    specs = {name: bench.config.eval.attacks[name] for name in bench.config.eval.system.attacks}
    threats: list[Any] = build.build_threats(specs, bench.subject.task)
    if bench.config.eval.surrogate:
        threats.append(_transfer(bench))
    return {threat.name: systems.blind_attack(system_of(bench, None), threat, bench.examples,
                                              tuple(bench.config.eval.eps), layout=bench.layout, seed=bench.seed)
            for threat in threats}


def _transfer(bench: Bench) -> Threat:
    """PGD on another run's model, whose logits take the form of a system's outputs."""
    system = system_of(bench, None)
    forms = jax.eval_shape(system.forward, system.variables, bench.examples.images[:1],
                           rng.example_keys(0, np.zeros(1, np.int32)))

    def as_outputs(logits: Array) -> dict[str, Array]:
        unused = {name: jnp.zeros((len(logits), *forms[name].shape[1:]), logits.dtype)
                  for name in ('features', 'score')}
        return {'logits': logits, **unused}

    return transfer_from(bench.config.eval.surrogate, bench.subject.task,
                         num_steps=bench.config.eval.surrogate_steps, outputs_of=as_outputs)


def attack_system(bench: Bench, fitted: Fitted | None, blind: dict[str, list[Found]], known: Known
                  ) -> tuple[dict[str, list[Found]], int]:
    """What every attack does to one system over the eps grid, 'clean' being the images as they are.

    And how many guides the aware attack gave to each image.

    The model alone meets the aware attack as well, which is then one on the classifier: systems are compared
    under equally many runs.
    """
    system, shared = system_of(bench, fitted), {'layout': bench.layout, 'seed': bench.seed}
    labels, chosen = np.asarray(bench.examples.targets), bench.config.eval.system
    outputs = systems.outputs_of(system, bench.examples, **shared)
    clean = Found(0.0, systems.judged(system, outputs, labels), outputs['score'], bench.examples.images)
    found = {'clean': [clean]}
    for name, points in blind.items():
        found[name] = [systems.rejudged(system, point, bench.examples, **shared) for point in points]
    guides = _guides(bench, fitted, outputs['features'], known)
    found[AWARE] = systems.aware_attack(
        system, bench.examples, tuple(bench.config.eval.eps), num_steps=chosen.aware_steps, guides=guides,
        num_rounds=chosen.aware_rounds, **shared)
    return found, 0 if guides is None else chosen.num_guides


def _guides(bench: Bench, fitted: Fitted | None, features: np.ndarray, known: Known) -> np.ndarray | None:
    """Features of accepted training images for the aware attack; None where there are none to take on."""
    chosen = bench.config.eval.system
    if not chosen.num_guides:
        return None
    seen, accepted = known.seen_images.evidence, slice(None)
    if fitted is not None:
        accepted = scores_of(fitted.detector, fitted.state, seen) >= fitted.threshold.tau
    pool = {'features': seen['features'][accepted], 'prediction': seen['logits'].argmax(1)[accepted]}
    labels = np.asarray(bench.examples.targets)
    # A model that names one class only; any other failure must not weaken the attack.
    if lacking := systems.without_guides(labels, pool['prediction']):
        logging.warning('The aware attack goes without guides: no accepted clean image is predicted as another '
                        'class than %d', lacking[0])
        return None
    return systems.guides_for(features, labels, pool, count=chosen.num_guides)
