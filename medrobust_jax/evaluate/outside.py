"""Foreign images that were changed until a model answers as for real ones: the search, and what it leaves behind.

Contents: `Search`, `search` (runs the attack), `rows_of_search`, `verdicts_of`, `pictures_of`, `rebuilds`.

Example:

    found = search(subject, examples, real_outputs, foreign, {'start_images': 'noise'}, distance=output_distance,
                   rho=20., num_steps=2000, layout=layout, seed=0)
    update_rows(workdir / 'results.jsonl', rows_of_search(found, subject, layout))
"""
import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from medrobust_jax.attacks.ood import ood, reaching
from medrobust_jax.core import rng
from medrobust_jax.core.types import Array, Attack, Outputs, Task
from medrobust_jax.evaluate import records, sanity
from medrobust_jax.evaluate.passes import passes_of
from medrobust_jax.evaluate.programs import Layout, in_chunks, make_attack, make_score, row_by_row, victim_of
from medrobust_jax.evaluate.provenance import provenance
from medrobust_jax.evaluate.suite import Examples, GridPoint
from medrobust_jax.evaluate.verdicts import Verdicts
from medrobust_jax.evaluate.writing import Subject, named_arrays, rows_at
from medrobust_jax.metrics.agreement import REACHED, agreement_metrics, agreement_values, foreign_auroc
from medrobust_jax.metrics.intervals import Estimate

Distance = Callable[[Outputs, Outputs], Array]
RECONSTRUCTION_ERROR = 'reconstruction_error'  # among the outputs of networks that rebuild their input


class Search(NamedTuple):
    """What was searched from one kind of start image; arrays with leading axis N.

    Attributes:
      examples: the real images whose outputs were to be reached.
      foreign: `[N, *spatial, C]`, the start images.
      options: of the attack, plain values; 'start_images' says what was started from.
      real: the model's outputs on the real images.
      before: its outputs on the start images.
      point: the images found inside the ball, the outputs there, passes and seconds.
      distances: `[2, N]`, what the attack lowers, at the start images and at those found.
    """

    examples: Examples
    foreign: np.ndarray
    options: Mapping[str, Any]
    real: Outputs
    before: Outputs
    point: GridPoint
    distances: np.ndarray

    @property
    def name(self) -> str:
        """What rows and files call the attack."""
        return 'ood_' + re.sub(r'\W+', '_', self.options['start_images']).strip('_')


def search(subject: Subject, examples: Examples, real: Outputs, foreign: np.ndarray, options: Mapping[str, Any], *,
           distance: Distance, rho: float, num_steps: int, layout: Layout, seed: int,
           progress: Callable[[int], None] = lambda rows: None) -> Search:
    """Runs `attacks.ood.ood` in the L2 ball of radius `rho` around every foreign image.

    Args:
      subject: the model.
      examples: the real images; their rows in the data set decide all draws.
      real: the model's outputs on them, the i-th to be reached from the i-th foreign image.
      foreign: `[N, *spatial, C]` in [0, 1].
      options: for the record, see `Search`.
      distance: `(outputs, wanted outputs) -> [B]`, the task's; the same object gives the same program.
      rho: the ball's radius, >= 0.
      num_steps: of the attack.
      layout: block width, chunk and devices.
      seed: of the draws.
      progress: called with the number of examples finished after every chunk.
    """
    started, keys, count = time.monotonic(), rng.example_keys(seed, examples.index), len(foreign)
    hunting, attack = _hunt(subject.task, distance, num_steps)
    program = make_attack(subject.forward, hunting, attack, layout, stop=False)
    result = in_chunks(program, layout, progress=progress)(
        subject.variables, keys, foreign, real, np.full(count, rho, np.float32))
    score = in_chunks(make_score(subject.forward, layout), layout)
    before, after = (score(subject.variables, keys, images) for images in (foreign, result.images))
    distances = -np.stack([row_by_row(hunting.loss)(outputs, real) for outputs in (before, after)])
    passes = passes_of(attack, victim_of(subject.forward, subject.variables, hunting),
                       image_shape=foreign.shape[1:], targets=jax.tree.map(lambda leaf: leaf[:1], real))
    point = GridPoint(rho, result, after, np.ones(count, bool), result.acceptable,
                      num_steps * passes.forward + passes.last_look, num_steps * passes.backward,
                      time.monotonic() - started)
    options = {**options, 'attack': 'ood', 'num_steps': num_steps, 'attack_seed': seed, 'stop_when_fooled': False}
    return Search(examples, foreign, options, real, before, point, distances)


@lru_cache(maxsize=8)  # so that the next kind of start image costs no compilation
def _hunt(task: Task, distance: Distance, num_steps: int) -> tuple[Task, Attack]:
    """The task whose targets are wanted outputs and whose loss is minus the distance to them; and the attack."""
    victim = reaching(lambda images, keys: images, distance)  # of which only loss and criterion are used
    return task._replace(loss=victim.loss, acceptable=victim.acceptable), ood(num_steps=num_steps)


def rows_of_search(found: Search, subject: Subject, layout: Layout) -> list[records.Row]:
    """Rows at eps = rho of the images found, and at eps = 0 of the start images, the control."""
    point, examples = found.point, found.examples
    warnings = sanity.check_point(point, examples._replace(images=found.foreign), norm='l2')
    start = point._replace(eps=0., outputs=found.before, forward_passes=1., backward_passes=0., wall_seconds=0.)
    rows = []
    for each, remarks in ((start, ()), (point, warnings)):
        evidence = provenance(**subject.fingerprints, block_width=layout.width, wall_seconds=each.wall_seconds)
        rows += records.rows_of(
            _estimates(found, each.outputs, subject.task), **subject.identity, attack=found.name, norm='l2',
            eps=each.eps, attack_options=found.options, forward_passes=each.forward_passes,
            backward_passes=each.backward_passes, warnings=remarks, provenance=evidence)
    return rows


def _estimates(found: Search, outputs: Outputs, task: Task) -> dict[str, Estimate]:
    groups, predict = found.examples.groups, row_by_row(task.predict)
    estimates = agreement_metrics(predict(outputs), predict(found.real), groups)
    if rebuilds(found.real):
        real, foreign = (each[RECONSTRUCTION_ERROR] for each in (found.real, outputs))
        estimates['reconstruction_auroc'] = foreign_auroc(real, foreign, groups)
    return estimates


def rebuilds(outputs: Outputs) -> bool:
    """Whether the network that gave these outputs reconstructs its input."""
    return isinstance(outputs, Mapping) and RECONSTRUCTION_ERROR in outputs


def verdicts_of(found: Search, subject: Subject) -> Verdicts:
    """Per example, at eps 0 and rho: 'quality' is 1 - Dice of the outputs, acceptable while the Dice is below .9.

    As everywhere higher is better for the model; 'loss' is minus the distance that the attack lowers.
    """
    predict = row_by_row(subject.task.predict)
    dice = np.stack([agreement_values(predict(outputs), predict(found.real))['output_dice']
                     for outputs in (found.before, found.point.outputs)])
    about = {**subject.identity, **subject.fingerprints, 'norm': 'l2', 'task': subject.task.name,
             'criterion': [1 - REACHED], **found.options}
    return Verdicts(
        index=found.examples.index, eps=np.array([0., found.point.eps]), acceptable=dice < REACHED,
        loss=-found.distances, first_fooled=np.full(dice.shape, -1, np.int32), withstood_clean=dice[0] < REACHED,
        attacked=np.stack([np.zeros(dice.shape[1], bool), found.point.attacked]), quality=1 - dice,
        groups=found.examples.groups, about=about)


def pictures_of(found: Search, subject: Subject, count: int) -> dict[str, np.ndarray]:
    """The first `count` examples, named `<attack>/<what>`: images, and what the model said of them."""
    rows = np.arange(min(count, len(found.foreign)))
    kept: dict[str, np.ndarray] = {
        'task': np.asarray(subject.task.name), 'start_images': np.asarray(found.options['start_images']),
        'rho': np.asarray(found.point.eps), 'index': found.examples.index[rows],
        'checkpoint': np.asarray(subject.fingerprints['checkpoint_fingerprint']),
        'start': found.foreign[rows], 'found': np.asarray(found.point.result.images)[rows],
        'real': found.examples.images[rows]}
    for what, outputs in (('start', found.before), ('found', found.point.outputs), ('real', found.real)):
        kept |= named_arrays(f'{what}_prediction', subject.task.predict(rows_at(outputs, rows)))
    return {f'{found.name}/{key}': value for key, value in kept.items()}
