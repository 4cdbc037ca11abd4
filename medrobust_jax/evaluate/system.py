"""A classifier and a detector under attack, as one system: by attackers who do not know the detector, and by
attackers who do.

A detector that was never attacked by somebody who knows it says nothing about safety. `aware_attack` looks per
example for a weight gamma that balances deviation and acceptance, by bisection, and then takes on features of
clean images, which needs no gradient of the score.

Contents: `System`, `Found`, `outputs_of`, `judged`, `blind_attack`, `rejudged`, `aware_attack`, `guides_for`,
`without_guides`.

Example:

    clean = outputs_of(system, examples, layout=layout, seed=0)
    plain = blind_attack(system, threat, examples, eps_grid, layout=layout, seed=0)
    aware = aware_attack(system, examples, eps_grid, guides=guides, layout=layout, seed=0)
"""
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from medrobust_jax.attacks.apgd import apgd
from medrobust_jax.core import rng
from medrobust_jax.core.types import Attack, PyTree, Task
from medrobust_jax.evaluate.programs import Layout, ModelForward, in_chunks, make_score
from medrobust_jax.evaluate.suite import Examples, GridPoint, Threat, attack_grid
from medrobust_jax.metrics.risk import Outcomes, outcomes
from medrobust_jax.tasks import system as system_tasks

# log10 of the weights gamma that are searched, in units of loss per standard deviation of the score.
LOG_GAMMA = (-2.0, 3.0)


class System(NamedTuple):
    """A classifier with a detector.

    Attributes:
      forward: `(variables, images, keys) -> {'logits', 'features', 'score'}`.
      variables: weights of the classifier and state of the detector.
      task: the classification.
      tau: accepted where the score is at least this; -inf accepts everything.
      spread: the standard deviation of the scores of clean images.
    """

    forward: ModelForward
    variables: PyTree
    task: Task
    tau: float
    spread: float


class Found(NamedTuple):
    """What an attack at one eps found; `[N]` arrays.

    Attributes:
      eps: the radius.
      outcomes: which images fooled the classifier, and which the system.
      score: the detector's scores of the images that were found.
      images: `[N, *spatial, C]`, these images.
    """

    eps: float
    outcomes: Outcomes
    score: np.ndarray
    images: np.ndarray


def outputs_of(system: System, examples: Examples, *, layout: Layout, seed: int) -> dict[str, np.ndarray]:
    """The system's outputs on the examples as they are."""
    keys = rng.example_keys(seed, examples.index)
    return in_chunks(make_score(system.forward, layout), layout)(system.variables, keys, examples.images)


def judged(system: System, outputs: Mapping[str, Any], labels: np.ndarray) -> Outcomes:
    """Right or wrong, accepted or not; a NaN score is not accepted."""
    wrong = ~np.asarray(system.task.acceptable(outputs['logits'], labels))
    return outcomes(wrong, np.asarray(outputs['score']) >= system.tau)


def rejudged(system: System, found: Found, examples: Examples, *, layout: Layout, seed: int) -> Found:
    """What `found`, made against another system, does to this one: an attack that knows no detector serves all."""
    outputs = outputs_of(system, examples._replace(images=found.images), layout=layout, seed=seed)
    return found._replace(outcomes=judged(system, outputs, np.asarray(examples.targets)), score=outputs['score'])


def blind_attack(system: System, threat: Threat, examples: Examples, eps_grid: Sequence[float], *, layout: Layout,
                 seed: int) -> list[Found]:
    """An attack on the classifier alone, whose images then meet the detector.

    Every image is the strongest on the classifier: all steps and restarts are made at every eps, since an attacker
    who knows nothing of the detector has no reason to stop at the first wrong class.

    Args:
      system: the system; its detector is not seen by the attack.
      threat: what attacks.
      examples: what is attacked; targets are labels `[N]`.
      eps_grid: radii.
      layout: block width, slots, devices.
      seed: of the draws.

    Returns:
      What was found, per eps, ascending.
    """
    labels = np.asarray(examples.targets)
    points = attack_grid(system.forward, system.variables, _blind_task(system.task), threat,
                         examples._replace(targets={'label': labels}), eps_grid, layout=layout, seed=seed,
                         stop_when_fooled=False)
    return [_found(system, point, labels) for point in points]


def aware_attack(system: System, examples: Examples, eps_grid: Sequence[float], *, layout: Layout, seed: int,
                 guides: np.ndarray | None = None, norm: str = 'linf', num_steps: int = 50, num_rounds: int = 6,
                 slack: float = 0.1) -> list[Found]:
    """The attacks of somebody who knows the detector: a joint objective, then features of clean images.

    First APGD on `tasks.system.joint`; gamma starts in the middle of `LOG_GAMMA` and is bisected per example for
    `num_rounds` runs: raised where the image found is wrong and rejected, lowered where it is not wrong. Then, for
    every guide, APGD on `tasks.system.matching`. An example that the system has failed on is left alone, also at
    larger eps.

    Args:
      system: the system; where its score has no gradient, the joint objective degenerates to the classifier's
        loss, and the guides are what attacks the detector.
      examples: what is attacked; targets are labels `[N]`.
      eps_grid: radii.
      layout: block width, slots, devices.
      seed: of the draws.
      guides: `[N, G, D]` features to take on, see `guides_for`; None for the joint objective alone.
      norm: of the ball.
      num_steps: of every run.
      num_rounds: runs of the joint objective at every eps, >= 1.
      slack: see `tasks.system.joint`.

    Returns:
      What was found, per eps, ascending: per example an image that reaches the clinic, else the last that fooled
      the classifier, else the last tried. Images of smaller radii are kept where nothing better was found.

    Raises:
      ValueError: for num_rounds < 1.
    """
    if num_rounds < 1:
        raise ValueError(f'num_rounds = {num_rounds} must be at least 1')
    shared = {'layout': layout, 'norm': norm, 'num_steps': num_steps}
    labels = np.asarray(examples.targets)
    clean = outputs_of(system, examples, layout=layout, seed=seed)
    best = Found(0.0, judged(system, clean, labels), clean['score'], np.array(examples.images))
    task = system_tasks.joint(system.task, tau=system.tau, spread=system.spread, slack=slack)
    match = system_tasks.matching(system.task, tau=system.tau)
    found = []
    for eps in sorted(map(float, eps_grid)):
        best = best._replace(eps=eps)
        low, high = (np.full(len(labels), bound) for bound in LOG_GAMMA)
        for number in range(num_rounds):
            middle = (low + high) / 2
            best, tried = _try(system, task, examples, best, {'gamma': (10**middle).astype(np.float32)},
                               seed=seed + number, **shared)
            rejected = tried.wrong & ~tried.reached
            low, high = np.where(rejected, middle, low), np.where(tried.wrong, high, middle)
        for number, guide in enumerate(() if guides is None else guides.swapaxes(0, 1)):
            best, _ = _try(system, match, examples, best, {'guide': guide}, seed=seed + number, **shared)
        found.append(best)
    return found


def guides_for(features: np.ndarray, labels: np.ndarray, known: Mapping[str, np.ndarray], *, count: int = 3
               ) -> np.ndarray:
    """Features that an attacked image may take on: the nearest of accepted clean images of other classes.

    Args:
      features: `[N, D]` of the images to be attacked.
      labels: `[N]`.
      known: 'features' `[M, D]` and 'prediction' `[M]` of clean images that the system accepts.
      count: guides per image, >= 1.

    Returns:
      `[N, count, D]`; the same guide again where fewer exist.

    Raises:
      ValueError: for count < 1, or where `without_guides` finds a label.
    """
    if count < 1:
        raise ValueError(f'count = {count} guides must be at least 1')
    pool, classes = np.asarray(known['features'], np.float32), np.asarray(known['prediction'])
    if lacking := without_guides(labels, classes):
        raise ValueError(f'no accepted clean image is predicted as another class than {lacking[0]}: '
                         'there are no features to take on')
    chosen = np.empty((len(features), count, pool.shape[1]), np.float32)
    for label in np.unique(labels):
        others = pool[classes != label]
        rows = np.flatnonzero(labels == label)
        wanted = np.asarray(features[rows], np.float32)
        # Expanded, so that memory grows with pairs of images and not with features too.
        distance = (wanted**2).sum(axis=1)[:, None] - 2 * wanted @ others.T + (others**2).sum(axis=1)
        nearest = np.argsort(distance, axis=1, kind='stable')[:, :count]
        chosen[rows] = others[np.resize(nearest.T, (count, len(rows))).T]
    return chosen


def without_guides(labels: np.ndarray, predictions: np.ndarray) -> list[int]:
    """The labels `[N]` than which no other is among `predictions` `[M]`, of clean images that are accepted."""
    return [int(label) for label in np.unique(labels) if not (predictions != label).any()]


def _try(system: System, task: Task, examples: Examples, best: Found, targets: Mapping[str, np.ndarray], *,
         layout: Layout, seed: int, norm: str, num_steps: int) -> tuple[Found, Outcomes]:
    """One run on the examples on which the system still stands; the best so far, and what this run found."""
    rows = np.flatnonzero(~best.outcomes.reached)
    labels = np.asarray(examples.targets)
    tried = Outcomes(*(part.copy() for part in best.outcomes))
    if not len(rows):
        return best, tried
    some = Examples(examples.images[rows], {name: value[rows] for name, value in
                                            {'label': labels, **targets}.items()}, examples.index[rows])
    threat = Threat('aware', _apgd(num_steps, norm), norm)
    (point,) = attack_grid(system.forward, system.variables, task, threat, some, (best.eps,), layout=layout,
                           seed=seed)
    new = _found(system, point, labels[rows])
    for kept, now in zip(tried, new.outcomes, strict=True):
        kept[rows] = now
    # What is kept belongs to the verdict: an image that fooled the classifier is not replaced by one that did not.
    take = new.outcomes.wrong | ~best.outcomes.wrong[rows]
    score, images = best.score.copy(), best.images.copy()
    score[rows[take]], images[rows[take]] = new.score[take], new.images[take]
    wrong = best.outcomes.wrong | tried.wrong
    return Found(best.eps, Outcomes(wrong, best.outcomes.reached | tried.reached), score, images), tried


def _found(system: System, point: GridPoint, labels: np.ndarray) -> Found:
    outputs: Any = point.outputs
    return Found(point.eps, judged(system, outputs, labels), np.asarray(outputs['score']),
                 np.asarray(point.result.images))


@lru_cache(maxsize=16)  # the same object, so that its programs are compiled once
def _apgd(num_steps: int, norm: str) -> Attack:
    return apgd(num_steps=num_steps, norm=norm, loss='task')


_blind_task = lru_cache(maxsize=16)(system_tasks.blind)
