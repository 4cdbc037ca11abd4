"""Attacks over a grid of eps on a whole test set, with every example's verdict.

An example that falls at one eps counts as fallen at every larger one, with the same image: the
smaller ball lies in the larger. Restarts and larger radii are spent on what still stands.

Contents: `Threat`, `Examples`, `GridPoint`, `clean_point`, `attack_grid`, `worst_case`.

Example:

    threat = Threat('pgd', pgd(num_steps=100), norm='linf', num_restarts=5)
    for point in attack_grid(forward, variables, task, threat, examples, (1/255, 8/255), layout=layout, seed=0):
        print(point.eps, point.acceptable.mean())
"""
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from medrobust_jax.core import rng
from medrobust_jax.core.checks import check_eps, check_images
from medrobust_jax.core.types import Attack, AttackResult, Outputs, PyTree, Targets, Task
from medrobust_jax.evaluate.passes import passes_of, steps_computed
from medrobust_jax.evaluate.programs import Layout, ModelForward, in_chunks, make_attack, make_score, victim_of


class Threat(NamedTuple):
    """An attack as an evaluation names it.

    Attributes:
      name: unique within the evaluation.
      attack: the attack.
      norm: of its ball.
      num_restarts: runs from different keys, >= 1.
      options: plain values for the record.
    """

    name: str
    attack: Attack
    norm: str = 'linf'
    num_restarts: int = 1
    options: Mapping[str, Any] = {}


class Examples(NamedTuple):
    """What is attacked: NumPy arrays with leading axis N.

    Attributes:
      images: `[N, *spatial, C]` float32 in [0, 1].
      targets: the task's targets.
      index: `[N]` rows in the data set, from which all randomness is derived.
      groups: `[N]` patient ids, or None.
    """

    images: np.ndarray
    targets: Targets
    index: np.ndarray
    groups: np.ndarray | None = None


class GridPoint(NamedTuple):
    """What an attack found at one eps; `[N]` arrays in the order of the examples.

    Attributes:
      eps: the radius.
      result: the strongest images found and their verdicts.
      outputs: the model's outputs at `result.images`, scored again in a pass of their own.
      attacked: `[N]` bool, whether the example was attacked at this eps (it was still standing).
      rescored: `[N]` bool, the criterion in the pass of its own.
      forward_passes: computed per example of the test set, at this eps.
      backward_passes: likewise.
      wall_seconds: spent at this eps.
    """

    eps: float
    result: AttackResult
    outputs: Outputs
    attacked: np.ndarray
    rescored: np.ndarray
    forward_passes: float
    backward_passes: float
    wall_seconds: float


def clean_point(forward: ModelForward, variables: PyTree, task: Task, examples: Examples, *, layout: Layout,
                seed: int) -> GridPoint:
    """The model without an attack, in the same form as an attacked one.

    Raises:
      ValueError, TypeError: where images or targets break the data contract; names the row.
    """
    check_images(examples.images, what='evaluation images')
    task.check_targets(examples.targets)
    started = time.monotonic()
    keys = rng.example_keys(seed, examples.index)
    outputs = in_chunks(make_score(forward, layout), layout)(variables, keys, examples.images)
    loss = np.asarray(task.loss(outputs, examples.targets))
    acceptable = np.asarray(task.acceptable(outputs, examples.targets))
    result = AttackResult(examples.images, loss, acceptable, np.where(acceptable, -1, 0).astype(np.int32))
    return GridPoint(0.0, result, outputs, np.zeros(len(loss), bool), acceptable, 1.0, 0.0,
                     time.monotonic() - started)


def attack_grid(forward: ModelForward, variables: PyTree, task: Task, threat: Threat, examples: Examples,
                eps_grid: Sequence[float], *, layout: Layout, seed: int, clean: GridPoint | None = None,
                stop_when_fooled: bool = True,
                progress: Callable[[int], None] = lambda rows: None) -> Iterator[GridPoint]:
    """Attacks at every eps of an ascending grid.

    Args:
      forward: `(variables, images, keys) -> outputs`.
      variables: the model's weights.
      task: loss and criterion.
      threat: what attacks.
      examples: what is attacked.
      eps_grid: radii > 0; sorted here.
      layout: block width, chunk and devices.
      seed: with an example's index it decides all its draws; the same at every eps.
      clean: from `clean_point`, to save that pass.
      stop_when_fooled: leave an example once it is fooled, and attack only what still stands.
        Otherwise every example is attacked with all steps and restarts at every eps, which is what
        losses and scores (not verdicts) need in order to be the attack's strongest.
      progress: called with the number of examples finished by every restart.

    Yields:
      One `GridPoint` per eps, ascending.

    Raises:
      ValueError: for a radius < 0 or fewer than one restart.
    """
    check_eps(eps_grid, field='eps_grid')
    if threat.num_restarts < 1:  # no attack at all would pass for perfect robustness
        raise ValueError(f'{threat.name}: num_restarts = {threat.num_restarts} must be at least 1')
    attack_rows = in_chunks(make_attack(forward, task, threat.attack, layout, stop=stop_when_fooled), layout,
                            progress=progress)
    score = in_chunks(make_score(forward, layout), layout)
    base_keys = rng.example_keys(seed, examples.index)
    victim = victim_of(forward, variables, task)
    passes = passes_of(threat.attack, victim, image_shape=examples.images.shape[1:],
                       targets=jax.tree.map(lambda t: t[:1], examples.targets))
    previous = clean if clean is not None else clean_point(forward, variables, task, examples, layout=layout,
                                                           seed=seed)
    result = previous.result
    for eps in sorted(eps_grid):
        started, steps, runs = time.monotonic(), 0, 0
        attacked = result.acceptable if stop_when_fooled else np.ones(len(examples.images), bool)
        for restart in range(threat.num_restarts):
            rows = np.flatnonzero(result.acceptable if stop_when_fooled else attacked)
            if not rows.size:
                break
            keys = rng.fold(base_keys, restart) if restart else base_keys
            found = attack_rows(variables, keys, examples.images, examples.targets,
                                np.full(len(examples.images), eps, np.float32), rows=rows)
            runs += rows.size
            steps += steps_computed(found.first_fooled, num_steps=threat.attack.num_steps, width=layout.width,
                                    stops=stop_when_fooled)
            result = _stronger_rows(result, found, rows)
        outputs = score(variables, base_keys, result.images)
        rescored = np.asarray(task.acceptable(outputs, examples.targets))
        forward_passes = (steps * passes.forward + runs * passes.last_look) / len(rescored)
        yield GridPoint(float(eps), result, outputs, np.asarray(attacked), rescored, forward_passes,
                        steps * passes.backward / len(rescored), time.monotonic() - started)


def _stronger_rows(old: AttackResult, found: AttackResult, rows: np.ndarray) -> AttackResult:
    """`old` with those of `rows` replaced whose `found` is stronger: fooled first, then the higher loss."""
    was, now = old.acceptable[rows], found.acceptable
    take = np.where(was == now, found.loss > old.loss[rows], was)
    merged = []
    for before, after in zip(old, found, strict=True):
        copy = np.array(before)
        copy[rows[take]] = after[take]
        merged.append(copy)
    return AttackResult(*merged)


def worst_case(grids: Sequence[Sequence[GridPoint]]) -> list[np.ndarray]:
    """Per eps, which examples withstood every attack: `[E]` arrays `[N]` bool."""
    return [np.all([point.result.acceptable for point in points], axis=0)
            for points in zip(*grids, strict=True)]
