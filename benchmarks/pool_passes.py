"""Passes that a grid of eps with restarts costs, against what its examples need and against lock-step.

    python -m benchmarks.pool_passes --config=configs/retinamnist.py:pgd_at --workdir=runs/retinamnist/pgd_at/0 \
        --num_examples=400 --out=benchmarks/results/pool_passes.jsonl

PGD-100 with 10 restarts over 8 radii, ascending and by bisection. 'needed' is the sum of the looks that each
example takes until it falls or has withstood everything; 'computed' is what the pool computed, done rows and
padding included; 'lock_step' is every example through every step of every restart at every radius. Where
nobody falls all three are equal but for padding, so the mean accuracy over the grid bounds what can be saved.
"""
import time
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks import rows
from experiments import main
from experiments.evaluate import subject_of
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.suite import Threat, attack_grid, clean_point
from medrobust_jax.parallel.mesh import data_mesh

RADII = tuple(r / 255 for r in (.5, 1, 1.5, 2, 3, 4, 6, 8))
flags.DEFINE_integer('num_examples', 200, 'Test images, a share of every class.')
flags.DEFINE_integer('num_restarts', 10, 'At every radius.')
flags.DEFINE_integer('num_steps', 100, 'Of PGD.')
flags.DEFINE_string('out', None, 'JSON lines to append to.')


def measure(config: ConfigDict, workdir: str, *, num_examples: int, num_restarts: int, num_steps: int
            ) -> list[dict[str, Any]]:
    """A row for the ascending grid and one for bisection."""
    config.eval.max_examples = num_examples
    subject, examples, task = subject_of(config, workdir)
    layout = make_layout(data_mesh(), width=config.eval.block_width, chunk=config.eval.chunk)
    model = (subject.forward, subject.variables, task)
    clean = clean_point(*model, examples, layout=layout, seed=0)
    threat = Threat('pgd', pgd(num_steps=num_steps), num_restarts=num_restarts)
    lock_step = len(RADII) * num_restarts * (num_steps + 1)  # per example
    table, verdicts = [], {}
    for order in ('ascending', 'bisection'):
        started = time.perf_counter()
        points = attack_grid(*model, threat, examples, RADII, layout=layout, seed=0, clean=clean, order=order)
        seconds = time.perf_counter() - started
        computed = sum(point.forward_passes for point in points)
        verdicts[order] = np.stack([point.result.acceptable for point in points])
        table.append({
            'benchmark': 'pool_passes', **subject.identity, 'order': order, 'num_examples': len(examples.images),
            'num_steps': num_steps, 'num_restarts': num_restarts, 'eps': RADII, 'block_width': layout.width,
            'slots': layout.chunk, 'looks_computed': computed, 'looks_needed': computed * points[0].passes_needed,
            'computed_over_needed': 1 / points[0].passes_needed, 'looks_lock_step': lock_step,
            'computed_over_lock_step': computed / lock_step,
            'mean_accuracy_over_grid': float(verdicts[order].mean()), 'seconds': seconds,
            'verdicts_unlike_ascending': int((verdicts[order] != verdicts['ascending']).sum())})
    return table


def _work(config: ConfigDict, workdir: str) -> None:
    chosen = flags.FLAGS
    table = measure(config, workdir, num_examples=chosen.num_examples, num_restarts=chosen.num_restarts,
                    num_steps=chosen.num_steps)
    for row in table:
        print('\n'.join(f'{name}: {value}' for name, value in row.items()), end='\n\n')
    if chosen.out:
        rows.append(chosen.out, table)


if __name__ == '__main__':
    main.launch(_work, device_per_core=True)
