"""A config's test images under one of its attacks at one eps, crafted anew or as an evaluation saved them.

Contents: `Attacked`, `choose_threat`, `craft`, `load_attacked`.

Example:

    threat, eps = choose_threat(config, task, 'pgd100', 4 / 255)
    images = craft(threat, eps, subject, examples, layout, seed=0).images
"""
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import build
from experiments.evaluate import Bars
from experiments.rescore import saved_images
from medrobust_jax.core.checks import check_eps, did_you_mean
from medrobust_jax.core.types import Task
from medrobust_jax.evaluate.judge import members_of
from medrobust_jax.evaluate.programs import Layout
from medrobust_jax.evaluate.suite import (
    Examples,
    GridPoint,
    Threat,
    attack_grid,
    attack_in_turn,
    clean_point,
)
from medrobust_jax.evaluate.writing import AnyThreat, Subject


class Attacked(NamedTuple):
    """Attacked images `[N, H, W, C]`, and what made them."""

    images: np.ndarray
    threat: AnyThreat
    eps: float
    forward_passes: float = float('nan')
    backward_passes: float = float('nan')


def choose_threat(config: ConfigDict, task: Task, attack: str | None, eps: float | None
                  ) -> tuple[AnyThreat, float]:
    """The attack by its name in the config, the last without one; and its radius, the middle one without one.

    A radius within half a percent of one in the attack's grid is that one: 0.0157 means 4/255.
    """
    known = list(config.eval.attacks)
    name = known[-1] if attack is None else attack
    if name not in known:
        did_you_mean(name, known, 'attack in config.eval.attacks')
    (threat,) = build.build_threats({name: config.eval.attacks[name]}, task)
    grid = tuple(threat.eps or config.eval.eps)
    if eps is None:
        return threat, float(grid[len(grid) // 2])
    check_eps((eps,), field='--eps')
    return threat, float(next((each for each in grid if abs(each - eps) < .005 * each), eps))


def craft(threat: AnyThreat, eps: float, subject: Subject, examples: Examples, layout: Layout, seed: int,
          progress: bool | None = None) -> Attacked:
    """Attacks every image to the end: one that is left as soon as it is fooled would be half an attack."""
    model = (subject.forward, subject.variables, subject.task)
    clean = clean_point(*model, examples, layout=layout, seed=seed)
    with Bars(shown=progress) as bars:
        def attack(member: Threat, previous: list[GridPoint] | None) -> list[GridPoint]:
            return attack_grid(*model, member, examples, (eps,), layout=layout, seed=seed, clean=clean,
                               stop_when_fooled=False, previous=previous,
                               progress=partial(bars.advance, member.name))

        (point,) = attack_in_turn(members_of(threat), attack)[-1]
    return Attacked(np.asarray(point.result.images), threat, eps, point.forward_passes, point.backward_passes)


def load_attacked(workdir: str | Path, threat: AnyThreat, eps: float, subject: Subject, examples: Examples
                  ) -> Attacked:
    """The images that an evaluation with `save_images` kept.

    Raises:
      FileNotFoundError: no such file, saying how to make it.
      ValueError: it belongs to another checkpoint or to other examples, or lacks the radius.
    """
    path = Path(workdir) / 'adversarial' / f'{threat.name}.npz'
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist: run experiments.evaluate with '
                                f'--config.eval.save_images=True first, or leave out --saved')
    saved = saved_images(path, subject, examples)
    at = int(np.argmin(abs(saved['eps'] - eps)))
    if not np.isclose(saved['eps'][at], eps, rtol=1e-3):
        raise ValueError(f'{path} has no images at eps = {eps:.5g}: set --eps to one of '
                         f'{", ".join(f"{each:.5g}" for each in saved["eps"])}')
    return Attacked(saved['images'][at], threat, float(saved['eps'][at]))
