"""Attacks over a grid of eps on a whole test set, with every example's verdict.

An example that falls at one eps counts as fallen at every larger one, with the same image: the
smaller ball lies in the larger. All radii, restarts and targets are one queue, worked off by the
pool (`evaluate.pool`): every one of them is spent on what still stands.

Contents: `Threat`, `Ensemble`, `Examples`, `GridPoint`, `clean_point`, `attack_grid`, `check_threat`,
`attack_in_turn`, `worst_case`, `without_images`.

Example:

    threat = Threat('pgd', pgd(num_steps=100), norm='linf', num_restarts=5)
    for point in attack_grid(forward, variables, task, threat, examples, (1/255, 8/255), layout=layout, seed=0):
        print(point.eps, point.result.acceptable.mean())
"""
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import check_eps, check_images
from medrobust_jax.core.types import Attack, AttackResult, Outputs, PyTree, Targets, Task
from medrobust_jax.evaluate.grid import Findings
from medrobust_jax.evaluate.passes import Passes, passes_of
from medrobust_jax.evaluate.pool import Pool
from medrobust_jax.evaluate.programs import Layout, ModelForward, in_chunks, make_score, row_by_row, victim_of
from medrobust_jax.evaluate.queue import Item, Search, every_item, first_items, successor
from medrobust_jax.evaluate.resume import Snapshots, digest_of, settings_of
from medrobust_jax.evaluate.slots import Entrants, make_slots

_COUNTED: dict[tuple, Passes] = {}  # what `check_threat` found: tracing a deep network takes half a second
_MOST_COUNTED = 64
_TARGETS = 0x7A46  # keeps the keys of targets apart from those of restarts and passes


class Threat(NamedTuple):
    """An attack as an evaluation names it.

    Attributes:
      name: unique within the evaluation.
      attack: the attack.
      norm: of its ball.
      num_restarts: runs from different keys at every radius and target, >= 1.
      options: plain values for the record.
      num_targets: for targeted attacks the runner-up classes to aim at, in the order of the clean outputs; they
        are given as the knob 'target_rank' 1, 2, ..., as many as there are classes but one.
      eps: the threat's own grid, where the evaluation's is not meant (degrees of severity, shares of the
        area); empty for the evaluation's.
      minimum_norm: whether the attack looks for the nearest fooling image, whatever the radius: it runs once
        for the whole grid, with eps = inf, and its loss is minus the distance.
    """

    name: str
    attack: Attack
    norm: str = 'linf'
    num_restarts: int = 1
    options: Mapping[str, Any] = {}
    num_targets: int = 1
    minimum_norm: bool = False
    eps: tuple[float, ...] = ()


class Ensemble(NamedTuple):
    """Attacks that are judged as one: a cascade, in which each attacks what the ones before it left standing.

    Attributes:
      name: unique within the evaluation.
      members: the attacks, of one norm, the cheapest first; their names are unique.
      norm: of their ball.
      options: plain values for the record.
      eps: as `Threat.eps`.
    """

    name: str
    members: tuple[Threat, ...]
    norm: str = 'linf'
    options: Mapping[str, Any] = {}
    eps: tuple[float, ...] = ()


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
      attacked: `[N]` bool, whether the example was attacked at this eps. Where it was not, its verdict follows
        from those at other radii: broken at a smaller one or, in a bisection, withstood at a larger one.
      rescored: `[N]` bool, the criterion in the pass of its own.
      forward_passes: computed per example of the test set, at this eps; what the pool computed beyond what
        was needed is shared out in proportion.
      backward_passes: likewise.
      wall_seconds: likewise.
      passes_needed: the share of the grid's passes that examples needed until they were done; the rest is
        the pool's tail and padding.
    """

    eps: float
    result: AttackResult
    outputs: Outputs
    attacked: np.ndarray
    rescored: np.ndarray
    forward_passes: float
    backward_passes: float
    wall_seconds: float
    passes_needed: float = 1.0


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
    loss, acceptable = (row_by_row(of)(outputs, examples.targets) for of in (task.loss, task.acceptable))
    result = AttackResult(examples.images, loss, acceptable, np.where(acceptable, -1, 0).astype(np.int32))
    return GridPoint(0.0, result, outputs, np.zeros(len(loss), bool), acceptable, 1.0, 0.0,
                     time.monotonic() - started)


def attack_grid(forward: ModelForward, variables: PyTree, task: Task, threat: Threat, examples: Examples,
                eps_grid: Sequence[float], *, layout: Layout, seed: int, clean: GridPoint | None = None,
                stop_when_fooled: bool = True, order: str = 'ascending',
                previous: Sequence[GridPoint] | None = None, snapshots: Snapshots | None = None,
                progress: Callable[[int, int], None] = lambda done, total: None) -> list[GridPoint]:
    """Attacks over a grid of eps.

    Args:
      forward: `(variables, images, keys) -> outputs`.
      variables: the model's weights.
      task: loss and criterion.
      threat: what attacks.
      examples: what is attacked.
      eps_grid: radii >= 0; sorted here.
      layout: block width, slots (`layout.chunk`) and devices.
      seed: with an example's index it decides all its draws; the same at every eps.
      clean: from `clean_point`, to save that pass.
      stop_when_fooled: leave an example once it is fooled, and attack only what still stands.
        Otherwise every example is attacked with all steps and restarts at every eps, which is what
        losses and scores (not verdicts) need in order to be the attack's strongest.
      order: 'ascending', or 'bisection': halve the gap between what is withstood and what is broken. That
        takes an example which stands at one eps to stand at all smaller ones: true of a perfect attack,
        an approximation for a real one.
      previous: points of another attack on the same grid, in a cascade: only what they left standing is
        attacked, and the points returned hold the worse of both.
      snapshots: where to save the search's state, and to continue from.
      progress: called with the number of examples (runs on examples, unless `stop_when_fooled`) that are
        finished, and their number in all.

    Returns:
      One `GridPoint` per eps, ascending.

    Raises:
      ValueError: for a radius < 0, an unknown order, or fewer than one restart or target.
    """
    passes = check_threat(threat, task, examples, eps_grid, forward=forward, variables=variables, order=order)
    radii = sorted(map(float, eps_grid))
    clean = clean_point(forward, variables, task, examples, layout=layout, seed=seed) if clean is None else clean
    known = [clean] * len(radii) if previous is None else list(previous)
    if [point.eps for point in known] != radii and previous is not None:
        raise ValueError(f'previous has the radii {[point.eps for point in known]}, not {radii}')
    standing = np.stack([point.result.acceptable for point in known])
    search = Search(1 if threat.minimum_norm else len(radii), threat.num_restarts, threat.num_targets, order)
    stops = stop_when_fooled and not threat.minimum_norm
    if stops:  # what stands at a radius stands at all smaller ones, so the sum is the first that is broken
        items = first_items(search, range(len(examples.images)), standing.sum(axis=0).tolist())
    else:
        items = every_item(search, np.flatnonzero(standing.any(axis=0) | (not stop_when_fooled)).tolist())
    if snapshots:
        snapshots = snapshots.of(
            threat=threat.name, norm=threat.norm, num_steps=threat.attack.num_steps,
            attack=[settings_of(part) for part in (threat.attack.init, threat.attack.step, threat.attack.adapt)],
            search=search, stops=stops, radii=radii, seed=seed, layout=(*layout[1:], layout.mesh.size),
            data=digest_of(examples.index, examples.images, *jax.tree.leaves(examples.targets), standing))
    entrants = _entrants(examples, clean.outputs, search, [np.inf] if threat.minimum_norm else radii, seed)
    pool = Pool(make_slots(forward, task, threat.attack, layout, stop=stops), layout, variables, entrants,
                num_steps=threat.attack.num_steps, items=items, stops=stops)
    findings = Findings(search.num_eps, len(examples.images))
    total = len(items)
    seconds = _work_off(pool, findings, partial(successor, search) if stops else None, snapshots,
                        lambda done: progress(done, total))
    score = partial(in_chunks(make_score(forward, layout), layout), variables,
                    rng.example_keys(seed, examples.index))
    needed = int(findings.looks.sum())
    carried, last, points = _unclimbed(clean.result), clean, []
    for position, (eps, before) in enumerate(zip(radii, known, strict=True)):
        if threat.minimum_norm:
            carried = findings.within(eps, carried, examples.images, norm=threat.norm)
            attacked, looks = findings.attacked[0], findings.looks[0] / len(radii)
        else:
            carried = findings.at(position, carried)
            attacked, looks = findings.attacked[position], findings.looks[position]
        outputs = _rescore(score, np.asarray(carried.images), last, before)
        share = float(looks) / max(needed, 1)
        computed = share * pool.looks_computed / len(attacked)
        last = GridPoint(
            eps, carried._replace(loss=row_by_row(task.loss)(outputs, examples.targets)), outputs, attacked,
            row_by_row(task.acceptable)(outputs, examples.targets), computed * passes.forward,
            computed * passes.backward, share * seconds, needed / pool.looks_computed if needed else 1.0)
        points.append(last)
    return points if previous is None else [_worse(a, b) for a, b in zip(known, points, strict=True)]


def check_threat(threat: Threat, task: Task, examples: Examples, eps_grid: Sequence[float], *,
                 forward: ModelForward, variables: PyTree, order: str = 'ascending') -> Passes:
    """Refuses what cannot be run, before anything is: traces the attack once, without computing.

    Returns:
      What a step of the attack costs.

    Raises:
      ValueError: for an empty grid or a radius < 0, an unknown order, fewer than one restart or target, more
        targets than wrong classes, a minimum-norm attack without a norm, and whatever the attack refuses.
    """
    check_eps(eps_grid, field='eps_grid')
    if not len(eps_grid):
        raise ValueError('eps_grid is empty: name at least one radius')
    Search(len(eps_grid), threat.num_restarts, threat.num_targets, order).check()
    if threat.minimum_norm and threat.norm not in balls.NORMS:
        raise ValueError(f"{threat.name} looks for the nearest image, but '{threat.norm}' measures no distance")
    if threat.num_targets > max(1, task.num_outputs - 1):
        raise ValueError(f'{threat.name}: num_targets = {threat.num_targets}, but {task.num_outputs} outputs have '
                         f'{task.num_outputs - 1} wrong classes')
    one = jax.tree.map(lambda t: t[:1], examples.targets)
    leaves, tree = jax.tree.flatten(one)
    asked = (forward, task, threat.attack, examples.images.shape[1:], tree, *(leaf.shape for leaf in leaves))
    if asked in _COUNTED:
        return _COUNTED[asked]
    keys = rng.example_keys(0, np.zeros(1, np.int32))
    outputs = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype),
                           jax.eval_shape(forward, variables, examples.images[:1], keys))
    if len(_COUNTED) >= _MOST_COUNTED:
        _COUNTED.clear()
    _COUNTED[asked] = passes_of(threat.attack, victim_of(forward, variables, task), targets=one,
                                image_shape=examples.images.shape[1:], clean_outputs=outputs)
    return _COUNTED[asked]


def _worse(before: GridPoint, point: GridPoint) -> GridPoint:
    """`point` with, per example, the stronger of both images: fooled first, then the task's higher loss."""
    was, now = before.result, point.result
    take = np.where(was.acceptable == now.acceptable, was.loss >= now.loss, now.acceptable)
    pick = lambda a, b: np.where(take.reshape(-1, *[1] * (np.ndim(a) - 1)), a, b)  # noqa: E731
    return point._replace(result=AttackResult(*map(pick, was, now)),
                          rescored=pick(before.rescored, point.rescored),
                          outputs=jax.tree.map(pick, before.outputs, point.outputs))


def _unclimbed(result: AttackResult) -> AttackResult:
    """`result` with the losses of an attack that has not looked yet: those of another kind do not compare."""
    return result._replace(loss=np.full(len(result.loss), -np.inf, np.float32))


def _rescore(score: Callable[..., Outputs], images: np.ndarray, *known: GridPoint) -> Outputs:
    """The outputs at `images`, computed only where no known point holds the same image."""
    outputs, missing = jax.tree.map(np.array, known[0].outputs), np.ones(len(images), bool)
    for point in known:
        same = (images == point.result.images).reshape(len(images), -1).all(axis=1) & missing
        for leaf, values in zip(jax.tree.leaves(outputs), jax.tree.leaves(point.outputs), strict=True):
            leaf[same] = values[same]
        missing &= ~same
    if missing.any():
        rows = np.flatnonzero(missing)
        scored = score(images, rows=rows)
        for leaf, values in zip(jax.tree.leaves(outputs), jax.tree.leaves(scored), strict=True):
            leaf[rows] = values
    return outputs


def _entrants(examples: Examples, clean_outputs: Outputs, search: Search, radii: Sequence[float], seed: int
              ) -> Callable[[list[Item]], Entrants]:
    """What a list of items means in arrays: the rows of the examples, with keys and knobs of their own."""
    base = rng.example_keys(seed, examples.index)
    keys = np.empty((search.num_targets, search.num_restarts, *jax.random.key_data(base).shape), np.uint32)
    for rank in range(search.num_targets):
        for restart in range(search.num_restarts):
            own = rng.fold(base, restart) if restart else base  # the first of all is the example's own
            keys[rank, restart] = jax.random.key_data(rng.fold(own, _TARGETS + rank) if rank else own)
    sizes = np.asarray(radii, np.float32)

    def entrants(items: list[Item]) -> Entrants:
        row, eps, restart, rank = np.asarray(items, np.int32).T[:4]
        take = lambda a: np.asarray(a)[row]  # noqa: E731
        own = jax.random.wrap_key_data(jnp.asarray(keys[rank - 1, restart, row]))
        return Entrants(take(examples.images), jax.tree.map(take, examples.targets), own,
                        jax.tree.map(take, clean_outputs),
                        {'eps': sizes[eps], 'restart': restart, 'target_rank': rank})

    return entrants


def _work_off(pool: Pool, findings: Findings, following: Callable[..., Item | None] | None,
              snapshots: Snapshots | None, progress: Callable[[int], None]) -> float:
    """Runs the pool until it is idle, from a snapshot where there is one; returns the seconds of all its runs."""
    saved = snapshots.load() if snapshots else None
    finished, earlier, started = 0, 0.0, time.monotonic()
    if saved is not None:
        pool.restore(saved)
        findings.restore(saved)
        finished, earlier = int(saved['finished']), float(saved['seconds'])

    def seconds() -> float:
        return earlier + time.monotonic() - started

    def state() -> dict[str, np.ndarray]:
        return {**pool.snapshot(), **findings.snapshot(), 'finished': np.asarray(finished),
                'seconds': np.asarray(seconds())}

    while not pool.idle:
        for ended in pool.advance():
            findings.enter(ended)
            item = following(ended.item, fooled=not ended.acceptable) if following else None
            if item is None:
                finished += 1
            else:
                pool.put(item)
        progress(finished)
        if snapshots:
            snapshots.save_if_due(state)
    took = seconds()
    if snapshots and took >= snapshots.every_seconds:  # what took less is sooner run again than saved
        snapshots.save(state())
    return took


def without_images(point: GridPoint) -> GridPoint:
    """A point with its verdicts and costs alone: images and outputs of a whole grid fill the memory."""
    return point._replace(result=point.result._replace(images=np.zeros(0, np.float32)), outputs=())


def attack_in_turn(members: Sequence[Threat], attack: Callable[..., list[GridPoint]]) -> list[list[GridPoint]]:
    """A cascade: each member attacks what those before it left standing.

    Args:
      members: the attacks, at least one.
      attack: `(threat, previous=points or None) -> points`, see `attack_grid`.

    Returns:
      Per member, the points after it; only the last hold images and outputs. Passes and seconds are those of all
      members so far.
    """
    so_far: list[list[GridPoint]] = []
    for member in members:
        before = so_far[-1] if so_far else None
        points = attack(member, previous=before)
        if before is not None:
            points = [_summed(old, new) for old, new in zip(before, points, strict=True)]
            so_far[-1] = [without_images(point) for point in before]
        so_far.append(points)
    return so_far


def _summed(old: GridPoint, new: GridPoint) -> GridPoint:
    """`new` with the passes and seconds of both."""
    passes = [(point.forward_passes, point.passes_needed) for point in (old, new)]
    computed = sum(forward for forward, _ in passes)
    needed = sum(forward * share for forward, share in passes)
    return new._replace(attacked=old.attacked | new.attacked, forward_passes=computed,
                        backward_passes=old.backward_passes + new.backward_passes,
                        wall_seconds=old.wall_seconds + new.wall_seconds,
                        passes_needed=needed / computed if computed else 1.0)


def worst_case(grids: Sequence[Sequence[GridPoint]]) -> list[np.ndarray]:
    """Per eps, which examples withstood every attack: `[E]` arrays `[N]` bool."""
    return [np.all([point.result.acceptable for point in points], axis=0)
            for points in zip(*grids, strict=True)]
