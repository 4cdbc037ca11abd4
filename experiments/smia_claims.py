"""Tests what the SMIA paper claims, on a trained model, with intervals; favorable or not.

    python -m experiments.smia_claims --config=configs/retinamnist.py:natural \
        --workdir=runs/retinamnist/natural/0 --out=results/smia/claims.jsonl

Claim 1: at equal eps, steps and step size, SMIA fools more images than FGSM, I-FGSM, PGD, MI-FGSM,
DI-FGSM, TI-FGSM and the margin attack of Carlini and Wagner. Measured: the paired difference in
robust accuracy (SMIA minus the other; negative favors SMIA) and McNemar's exact p.

Claim 2: a2 > 0 lowers the variance of the perturbation, across iterations and across restarts.
Measured per image: the variance over iterates (or over the last iterates of restarts) of each
pixel of the perturbation, in units of eps^2, mean over pixels; paired against a2 = 0.

Claim 3: the divergence to the final prediction falls at a larger share of steps. Measured per
image: the share of steps t with D(f(x_K), f(x_{t+1})) <= D(f(x_K), f(x_t)); paired against a2 = 0.

Every row has the interval of a paired bootstrap over images; 'supported' is True where the whole
interval lies on the claim's side, False where it lies on the other, else None.
"""
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import build
from experiments.evaluate import subject_of
from medrobust_jax.attacks.run import begin
from medrobust_jax.core import rng
from medrobust_jax.core.blocks import in_blocks, on_each_device
from medrobust_jax.core.types import Attack, Task
from medrobust_jax.evaluate.programs import Layout, ModelForward, in_chunks, make_layout, victim_of
from medrobust_jax.evaluate.provenance import provenance
from medrobust_jax.evaluate.suite import Examples, Threat, attack_grid, clean_point
from medrobust_jax.metrics.intervals import mcnemar, paired_bootstrap
from medrobust_jax.parallel.mesh import data_mesh

NUM_STEPS = 20
STEP = 2.5 / NUM_STEPS
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)  # a2
NUM_RESTARTS = 3
NUM_STABILITY = 200  # images for claims 2 and 3, of every class its share; claim 1 uses all


def rivals() -> dict[str, dict[str, Any]]:
    """The attacks that SMIA is compared with, with equal steps and step size (FGSM has one)."""
    shared = {'num_steps': NUM_STEPS, 'relative_step_size': STEP}
    specs: dict[str, dict[str, Any]] = {'fgsm': {'attack': 'fgsm', 'options': {}}}
    for attack in ('ifgsm', 'pgd', 'mi_fgsm', 'di_fgsm', 'ti_fgsm', 'pgd_margin'):
        specs[attack] = {'attack': attack, 'options': shared}
    return {name: {**spec, 'num_restarts': 1} for name, spec in specs.items()}


def variants() -> dict[str, dict[str, Any]]:
    """SMIA over its weight a2, and its 'hard' form."""
    shared = {'num_steps': NUM_STEPS, 'relative_step_size': STEP}
    specs = {f'smia_a2_{weight:g}': {**shared, 'stabilization_weight': weight} for weight in WEIGHTS}
    specs['smia_hard'] = {**shared, 'stabilization': 'hard'}
    return {name: {'attack': 'smia', 'options': options, 'num_restarts': 1} for name, options in specs.items()}


def threats_of(specs: Mapping[str, Any], task: Task) -> list[Threat]:
    """Single attacks, none of them an ensemble."""
    return [threat for threat in build.build_threats(specs, task) if isinstance(threat, Threat)]


@lru_cache(maxsize=64)
def make_trajectory(forward: ModelForward, task: Task, attack: Attack, layout: Layout) -> Callable[..., Any]:
    """The compiled `(variables, keys, images, targets, eps) -> (iterates, outputs)`, both `[chunk, K+1, ...]`."""
    def rows(variables: Any, keys: Any, images: Any, targets: Any, eps: Any) -> Any:
        victim = attack.adapt(victim_of(forward, variables, task))

        def block(k: Any, x: Any, y: Any, e: Any) -> Any:
            first = begin(attack, victim, k, x, y, eps=e)
            last, seen = jax.lax.scan(lambda s, _: (attack.step(victim, x, y, s), s.images), first, None,
                                      length=attack.num_steps)
            iterates = jnp.concatenate([seen, last.images[None]])
            outputs = jax.lax.map(lambda image: victim.forward(image, k), iterates)
            return iterates.swapaxes(0, 1), outputs.swapaxes(0, 1)

        return in_blocks(block, width=layout.width)(keys, images, targets, eps)

    return jax.jit(on_each_device(rows, layout.mesh, num_shared=1))


def stability(forward: ModelForward, variables: Any, task: Task, attack: Attack, random_attack: Attack,
              examples: Examples, eps: float, *, layout: Layout, seed: int) -> dict[str, np.ndarray]:
    """Per image: variance over iterations and over restarts, share of steps that approach the final prediction."""
    keys = rng.example_keys(seed, examples.index)
    radius = np.full(len(examples.images), eps, np.float32)
    iterates, outputs = in_chunks(make_trajectory(forward, task, attack, layout), layout)(
        variables, keys, examples.images, examples.targets, radius)
    deltas = (iterates - examples.images[:, None]) / eps
    final = np.repeat(outputs[:, -1:], outputs.shape[1], axis=1)
    flat = (final.reshape(-1, final.shape[-1]), outputs.reshape(-1, final.shape[-1]))
    distance = np.asarray(task.divergence(*flat))
    steps = np.diff(distance.reshape(outputs.shape[:2])[:, :-1], axis=1)  # the last distance is zero by definition
    ends = []
    for restart in range(NUM_RESTARTS):
        moved, _ = in_chunks(make_trajectory(forward, task, random_attack, layout), layout)(
            variables, rng.fold(keys, restart), examples.images, examples.targets, radius)
        ends.append((moved[:, -1] - examples.images) / eps)
    pixels = tuple(range(1, examples.images.ndim))
    return {'variance_over_iterations': deltas[:, 1:].var(axis=1).mean(axis=pixels),
            'variance_over_restarts': np.var(ends, axis=0).mean(axis=pixels),
            'share_of_falling_steps': (steps <= 0).mean(axis=1)}


def judge_claims(config: ConfigDict, workdir: str, *, eps_grid: Sequence[float], data_dir: str | None = None
                ) -> list[dict[str, Any]]:
    """All three claims on one model; returns one plain row per comparison."""
    subject, examples, task = subject_of(config, workdir, data_dir=data_dir)
    layout = make_layout(data_mesh(), width=config.eval.block_width, chunk=config.eval.chunk)
    model, seed = (subject.forward, subject.variables, task), config.eval.seed
    clean = clean_point(*model, examples, layout=layout, seed=seed)
    chosen = build.share_of_each_class(np.asarray(examples.targets), NUM_STABILITY)
    few = jax.tree.map(lambda column: column[chosen], examples)
    evidence = provenance(**subject.fingerprints, block_width=layout.width)
    evidence.pop('wall_seconds')  # not measured here
    common = {**subject.identity, 'num_steps': NUM_STEPS, 'attack_seed': seed, 'provenance': evidence}
    rows = []
    for eps in eps_grid:
        standing = {}
        for threat in threats_of({**rivals(), **variants()}, task):
            (point,) = attack_grid(*model, threat, examples, (eps,), layout=layout, seed=seed, clean=clean)
            standing[threat.name] = point.result.acceptable
            logging.info('eps %.4g %s: %.4f', eps, threat.name, point.result.acceptable.mean())
        rows += [success_row(standing[ours], standing[other], ours=ours, other=other, eps=eps)
                 for ours in variants() for other in rivals()]
        measure = partial(stability, *model, examples=few, eps=eps, layout=layout, seed=seed)
        rows += stability_rows(measure, task, eps)
    return [{**common, **row} for row in rows]


def success_row(ours_standing: np.ndarray, other_standing: np.ndarray, *, ours: str, other: str, eps: float
                ) -> dict[str, Any]:
    """Claim 1 for one pair of attacks."""
    difference = paired_bootstrap(np.mean, (other_standing.astype(float),), (ours_standing.astype(float),))
    return {'claim': 1, 'eps': eps, 'ours': ours, 'other': other, 'measure': 'robust_accuracy',
            'ours_value': float(ours_standing.mean()), 'other_value': float(other_standing.mean()),
            **_judged(difference, lower_is_better=True), 'mcnemar_p': mcnemar(other_standing, ours_standing),
            'n': len(ours_standing)}


def stability_rows(measure: Callable[..., dict[str, np.ndarray]], task: Task, eps: float
                   ) -> list[dict[str, Any]]:
    """Claims 2 and 3: every variant against a2 = 0."""
    values = {}
    for name, spec in variants().items():
        (threat,) = threats_of({name: spec}, task)
        (random,) = threats_of({name: {**spec, 'options': {**spec['options'], 'start': 'ball'}}}, task)
        values[name] = measure(attack=threat.attack, random_attack=random.attack)
    baseline = values.pop('smia_a2_0')
    rows = []
    for name, ours in values.items():
        for what, lower in (('variance_over_iterations', True), ('variance_over_restarts', True),
                            ('share_of_falling_steps', False)):
            difference = paired_bootstrap(np.mean, (baseline[what],), (ours[what],))
            rows.append({'claim': 2 if lower else 3, 'eps': eps, 'ours': name, 'other': 'smia_a2_0',
                         'measure': what, 'ours_value': float(ours[what].mean()),
                         'other_value': float(baseline[what].mean()),
                         **_judged(difference, lower_is_better=lower), 'n': len(ours[what])})
    return rows


def _judged(difference: Any, *, lower_is_better: bool) -> dict[str, Any]:
    low, high = (difference.low, difference.high) if lower_is_better else (-difference.high, -difference.low)
    return {'difference': difference.value, 'low': difference.low, 'high': difference.high,
            'supported': True if high < 0 else False if low > 0 else None}


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces the rows of the same models in a JSONL file and keeps the others."""
    path = Path(path)
    who = {_checkpoint(row) for row in rows}
    kept = []
    if path.exists():
        kept = [row for row in map(json.loads, path.read_text().splitlines()) if _checkpoint(row) not in who]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix('.partial')
    partial_path.write_text(''.join(json.dumps(row, allow_nan=False) + '\n' for row in [*kept, *rows]))
    partial_path.replace(path)


def _checkpoint(row: Mapping[str, Any]) -> str:
    return row['provenance']['checkpoint_fingerprint']


if __name__ == '__main__':
    from absl import flags

    from experiments import main

    flags.DEFINE_string('out', 'smia_claims.jsonl', 'The file of rows; those of other models are kept.')
    flags.DEFINE_list('eps', ['1', '4', '8'], 'Radii in 1/255.')
    main.launch(lambda config, workdir: write_rows(flags.FLAGS.out, judge_claims(
        config, workdir, eps_grid=[float(each) / 255 for each in flags.FLAGS.eps],
        data_dir=flags.FLAGS.data_dir)), device_per_core=True)
