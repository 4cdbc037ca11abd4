"""Tests what the SMIA paper claims, on a trained model of any task, with intervals; favorable or not.

    python -m experiments.smia_claims --config=configs/retinamnist.py:natural \
        --workdir=runs/retinamnist/natural/0 --out=results/smia/claims.jsonl --table=results/smia/claims.md

Claim 1: at equal eps, steps and step size, SMIA fools more images than FGSM, I-FGSM, PGD, MI-FGSM
and TI-FGSM, on labels and findings also DI-FGSM (which moves the image, and would leave a mask behind),
on classifiers the margin attack of Carlini and Wagner. Measured: the paired difference in robust
accuracy (SMIA minus the other; negative favors SMIA) and, where every image is a patient of its own,
McNemar's exact p; where a criterion has thresholds, also in the quality that it compares with them,
every attack then running to its end.

Claim 2: a2 > 0 lowers the variance of the perturbation, across iterations and across restarts.
Measured per image: the variance over iterates (or over the last iterates of restarts) of each
pixel of the perturbation, in units of eps^2, mean over pixels; paired against a2 = 0.

Claim 3: the divergence to the final prediction falls at a larger share of steps. Measured per
image: the share of steps t with D(f(x_K), f(x_{t+1})) <= D(f(x_K), f(x_t)); paired against a2 = 0.

D is the task's divergence. Every row has the interval of a paired bootstrap over patients (images
where there are none), or of Newcombe where verdicts leave that without a width; 'supported' is True
where the whole interval lies on the claim's side, False where it lies on the other, else None.
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
from experiments.compare import VERDICTS
from experiments.evaluate import subject_of
from medrobust_jax.attacks.run import begin
from medrobust_jax.core import rng
from medrobust_jax.core.blocks import in_blocks, on_each_device
from medrobust_jax.core.types import Attack, Task
from medrobust_jax.evaluate.files import plain, replacing
from medrobust_jax.evaluate.pairs import is_supported, paired_difference, quality_columns
from medrobust_jax.evaluate.programs import Layout, ModelForward, in_chunks, make_layout, row_by_row, victim_of
from medrobust_jax.evaluate.provenance import provenance
from medrobust_jax.evaluate.suite import Examples, Threat, attack_grid, clean_point
from medrobust_jax.metrics.intervals import mcnemar
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.report.summary import eps_text
from medrobust_jax.report.tables import Table, to_markdown

NUM_STEPS = 20
STEP = 2.5 / NUM_STEPS
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)  # a2
NUM_RESTARTS = 3
NUM_STABILITY = 200  # images for claims 2 and 3, of every class its share; claim 1 uses all


def rivals(task: Task) -> dict[str, dict[str, Any]]:
    """The attacks that SMIA is compared with, with equal steps and step size (FGSM has one)."""
    shared = {'num_steps': NUM_STEPS, 'relative_step_size': STEP}
    specs: dict[str, dict[str, Any]] = {'fgsm': {'attack': 'fgsm', 'options': {}}}
    moving = ('di_fgsm',) if {'label', 'findings'} & set(task.target_names) else ()
    of_logits = ('pgd_margin',) if task.name == 'classification' else ()
    for attack in ('ifgsm', 'pgd', 'mi_fgsm', *moving, 'ti_fgsm', *of_logits):
        specs[attack] = {'attack': attack, 'options': shared}
    return {name: {**spec, 'num_restarts': 1} for name, spec in specs.items()}


def variants(task: Task) -> dict[str, dict[str, Any]]:
    """SMIA over its weight a2, and its 'hard' form, where outputs are logits of exclusive classes."""
    shared = {'num_steps': NUM_STEPS, 'relative_step_size': STEP}
    specs = {f'smia_a2_{weight:g}': {**shared, 'stabilization_weight': weight} for weight in WEIGHTS}
    if task.name in ('classification', 'segmentation'):
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
            return jax.tree.map(lambda of_steps: of_steps.swapaxes(0, 1), (iterates, outputs))

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
    final = jax.tree.map(lambda leaf: np.repeat(leaf[:, -1:], leaf.shape[1], axis=1), outputs)
    one_axis = partial(jax.tree.map, lambda leaf: leaf.reshape(-1, *leaf.shape[2:]))
    distance = row_by_row(task.divergence)(one_axis(final), one_axis(outputs)).reshape(iterates.shape[:2])
    steps = np.diff(distance[:, :-1], axis=1)  # the last distance is zero by definition
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
    few = jax.tree.map(lambda column: column[_chosen(examples)], examples)
    evidence = {**provenance(**subject.fingerprints, block_width=layout.width), **subject.setting,
                'criterion': list(subject.criterion)}
    evidence.pop('wall_seconds')  # not measured here
    common = {**subject.identity, 'num_steps': NUM_STEPS, 'attack_seed': seed, 'provenance': evidence}
    rows = []
    for eps in eps_grid:
        left: dict[str, dict[str, np.ndarray]] = {}
        for threat in threats_of({**rivals(task), **variants(task)}, task):
            (point,) = attack_grid(*model, threat, examples, (eps,), layout=layout, seed=seed, clean=clean,
                                   stop_when_fooled=task.quality is None)
            left[threat.name] = {'robust_accuracy': point.result.acceptable}
            if task.quality is not None:
                left[threat.name] |= quality_columns(row_by_row(task.quality)(point.outputs, examples.targets))
            logging.info('eps %.4g %s: %s', eps, threat.name,
                         ', '.join(f'{what} {values.mean():.4f}' for what, values in left[threat.name].items()))
        for ours in variants(task):
            for other in rivals(task):
                rows += success_rows(left[ours], left[other], examples.groups, ours=ours, other=other, eps=eps)
        measure = partial(stability, *model, examples=few, eps=eps, layout=layout, seed=seed)
        rows += stability_rows(measure, task, few.groups, eps)
    return [{**common, **row} for row in rows]


def _chosen(examples: Examples) -> np.ndarray:
    """The images of claims 2 and 3: of labels every class its share, otherwise the first ones."""
    targets = examples.targets
    if isinstance(targets, np.ndarray) and targets.ndim == 1:
        return build.share_of_each_class(targets, NUM_STABILITY)
    return np.arange(min(NUM_STABILITY, len(examples.images)))


def success_rows(ours_left: Mapping[str, np.ndarray], other_left: Mapping[str, np.ndarray],
                 groups: np.ndarray | None, *, ours: str, other: str, eps: float) -> list[dict[str, Any]]:
    """Claim 1 for one pair of attacks, by what they leave: verdicts and qualities, `[N]` each."""
    rows, independent = [], groups is None or len(np.unique(groups)) == len(groups)
    for what, own in ours_left.items():
        theirs = other_left[what]
        p = {'mcnemar_p': mcnemar(theirs, own)} if what == 'robust_accuracy' and independent else {}
        rows.append({'claim': 1, 'eps': eps, 'ours': ours, 'other': other, 'measure': what,
                     **_judged(own, theirs, groups, lower_is_better=True), **p, 'n': len(own)})
    return rows


def stability_rows(measure: Callable[..., dict[str, np.ndarray]], task: Task, groups: np.ndarray | None,
                   eps: float) -> list[dict[str, Any]]:
    """Claims 2 and 3: every variant against a2 = 0."""
    values = {}
    for name, spec in variants(task).items():
        (threat,) = threats_of({name: spec}, task)
        (random,) = threats_of({name: {**spec, 'options': {**spec['options'], 'start': 'ball'}}}, task)
        values[name] = measure(attack=threat.attack, random_attack=random.attack)
    baseline = values.pop('smia_a2_0')
    return [{'claim': 2 if lower else 3, 'eps': eps, 'ours': name, 'other': 'smia_a2_0', 'measure': what,
             **_judged(ours[what], baseline[what], groups, lower_is_better=lower), 'n': len(ours[what])}
            for name, ours in values.items()
            for what, lower in (('variance_over_iterations', True), ('variance_over_restarts', True),
                                ('share_of_falling_steps', False))]


def _judged(ours: np.ndarray, other: np.ndarray, groups: np.ndarray | None, *, lower_is_better: bool
            ) -> dict[str, Any]:
    difference = paired_difference(ours.astype(float), other.astype(float), groups)
    return plain({'ours_value': ours.mean(), 'other_value': other.mean(), 'difference': difference.value,
                  'low': difference.low, 'high': difference.high, 'interval': difference.method,
                  'supported': is_supported(difference, lower_is_claimed=lower_is_better)})


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """SMIA with a2 = 1 against each rival and against a2 = 0: a line per claim and rival, a column per model."""
    own = [row for row in rows if row['ours'] == 'smia_a2_1']
    columns = list(dict.fromkeys(map(_column, own)))
    cells = {(row['claim'], row['measure'], row['other'], _column(row)): _cell(row) for row in own}
    lines = [[str(claim), measure.replace('_', ' '), other.replace('smia_a2_0', 'a2 = 0'),
              *(cells.get((claim, measure, other, column), '') for column in columns)]
             for claim, measure, other in dict.fromkeys(key[:3] for key in cells)]
    caption = ('SMIA (a2 = 1, KL) minus the other, with paired 95 % intervals; **yes** and **no** where '
               'the whole interval is on the claim\'s side of zero, or on the other.')
    return Table(caption, ['claim', 'measure', 'against', *columns], lines, [])


def _column(row: Mapping[str, Any]) -> str:
    seed = f', seed {row["seed"]}' if row['seed'] else ''
    return f'{row["dataset"]} {row["defense"]}{seed}, {eps_text(row["eps"], "linf")}'


def _cell(row: Mapping[str, Any]) -> str:
    if row['difference'] is None:
        return 'undefined'
    cell = f'{row["difference"]:+.4f} [{row["low"]:+.4f}, {row["high"]:+.4f}] {VERDICTS[row["supported"]]}'
    return cell.rstrip()


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replaces the rows of the same models at the same eps in a JSONL file, keeps the others, and returns all."""
    path = Path(path)
    who = set(map(_measured, rows))
    kept = []
    if path.exists():
        kept = [row for row in map(json.loads, path.read_text().splitlines()) if _measured(row) not in who]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial_path:
        partial_path.write_text(''.join(json.dumps(row, allow_nan=False) + '\n' for row in [*kept, *rows]))
    return [*kept, *rows]


def _measured(row: Mapping[str, Any]) -> tuple[Any, ...]:
    about = row['provenance']
    return about['checkpoint_fingerprint'], row['defense'], row['eps'], tuple(about.get('criterion', ()))


if __name__ == '__main__':
    from absl import flags

    from experiments import main

    flags.DEFINE_string('out', 'smia_claims.jsonl', 'The file of rows; those of other models and eps are kept.')
    flags.DEFINE_string('table', None, 'A Markdown file to write, of all rows in --out.')
    flags.DEFINE_list('eps', ['1', '4', '8'], 'Radii in 1/255.')

    def _main(config: ConfigDict, workdir: str) -> None:
        chosen = flags.FLAGS
        rows = judge_claims(config, workdir, eps_grid=[float(each) / 255 for each in chosen.eps],
                            data_dir=chosen.data_dir)
        everything = write_rows(chosen.out, rows)
        if chosen.table:
            Path(chosen.table).write_text(to_markdown(table_of(everything)) + '\n', encoding='utf-8')

    main.launch(_main, device_per_core=True)
