"""Peak memory of an adversarial training step against a natural one.

    python -m benchmarks.training_memory --out=benchmarks/results/training_memory.jsonl

Every step is compiled and run in a process of its own. Two figures for each: what the compiler
reserves for the program (arguments + results - reused + temporaries), and by how much the process
grew at its peak while steps ran (Linux). README.md says what is counted.
"""
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import rows
from experiments import runtime
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.core.types import Defense, Task
from medrobust_jax.defenses.pgd_at import pgd_at
from medrobust_jax.defenses.radius import constant
from medrobust_jax.defenses.standard import natural
from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.registry import create_model
from medrobust_jax.parallel.mesh import data_mesh, put_batch
from medrobust_jax.tasks.classification import classification
from medrobust_jax.train.optim import create_optimizer
from medrobust_jax.train.state import create_state
from medrobust_jax.train.step import make_train_step

FLAGS = flags.FLAGS
flags.DEFINE_string('out', None, 'JSONL file to which one row per training step is added; default: none.')
flags.DEFINE_string('model', 'resnet18', 'Any model of the registry that takes `stem`.')
flags.DEFINE_string('stem', 'large', 'small, strided or large.')
flags.DEFINE_integer('image_size', 64, 'Height and width of the images in pixels.', lower_bound=8)
flags.DEFINE_integer('channels', 3, 'Channels of the images.', lower_bound=1)
flags.DEFINE_integer('batch', 64, 'Images.', lower_bound=1)
flags.DEFINE_multi_integer('steps', [10, 40], 'Steps of PGD; repeat for several. Natural training comes first.')
flags.DEFINE_integer('updates', 2, 'Training steps that run.', lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Of weights and images.')
flags.DEFINE_integer('alone', None, 'Print the measurement of this many steps of PGD alone (0: natural) as JSON.')

NUM_CLASSES = 4
MEGABYTE = 2**20


def defense_of(task: Task, num_steps: int) -> Defense:
    """PGD-AT, or natural training for 0 steps."""
    if not num_steps:
        return natural(task)
    return pgd_at(task, pgd(num_steps=num_steps, relative_step_size=2.5 / num_steps), radius=constant(8 / 255))


def process_memory(name: str) -> int | None:
    """A field of /proc/self/status in bytes, e.g. 'VmHWM' (the peak) or 'VmRSS'; None where there is none."""
    status = Path('/proc/self/status')
    if not status.exists():
        return None
    return int(re.search(rf'{name}:\s*(\d+) kB', status.read_text())[1]) * 1024


def forget_peak() -> None:
    """Starts VmHWM anew: what the compiler needed is not what a step needs."""
    reset = Path('/proc/self/clear_refs')
    if reset.exists():
        reset.write_text('5')


def measure(num_steps: int) -> dict[str, Any]:
    """Compiles a training step, runs it, and returns its memory in MB and times in seconds."""
    module = create_model(FLAGS.model, num_outputs=NUM_CLASSES, stem=FLAGS.stem)
    shape = (FLAGS.image_size, FLAGS.image_size, FLAGS.channels)
    mesh, forward, task = data_mesh(), apply_model(module), classification(NUM_CLASSES)
    defense, optimizer = defense_of(task, num_steps), create_optimizer('sgd', 0.01)
    variables = init_variables(module, jax.random.key(FLAGS.seed), shape)
    state = create_state(forward, *variables, defense, optimizer, num_train=FLAGS.batch, image_shape=shape,
                         seed=FLAGS.seed, mesh=mesh)
    del variables
    train_step = make_train_step(forward, defense, optimizer, augment=None, seed=FLAGS.seed, ema_decay=None,
                                 mesh=mesh)
    draws = np.random.default_rng(FLAGS.seed)
    batch = put_batch(mesh, {
        'image': draws.uniform(size=(FLAGS.batch, *shape)).astype(np.float32),
        'label': draws.integers(NUM_CLASSES, size=FLAGS.batch).astype(np.int32),
        'mask': np.ones(FLAGS.batch, bool), 'index': np.arange(FLAGS.batch, dtype=np.int32)})
    started = time.perf_counter()
    compiled = train_step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - started
    plan = compiled.memory_analysis()
    before, _ = process_memory('VmRSS'), forget_peak()
    started = time.perf_counter()
    for _ in range(FLAGS.updates):
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
    seconds, peak = time.perf_counter() - started, process_memory('VmHWM')
    planned = (plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
               + plan.temp_size_in_bytes)
    return {'num_steps': num_steps, 'planned_mb': planned / MEGABYTE,
            'temporaries_mb': plan.temp_size_in_bytes / MEGABYTE,
            'before_mb': before and before / MEGABYTE, 'peak_mb': peak and peak / MEGABYTE,
            'growth_mb': peak and before and (peak - before) / MEGABYTE,
            'compile_seconds': compile_seconds, 'seconds_per_update': seconds / FLAGS.updates,
            'loss': float(metrics['loss'][0] / metrics['loss'][1])}


def measure_apart(num_steps: int) -> dict[str, Any]:
    """`measure` in a fresh process with the same flags."""
    command = [sys.executable, '-m', 'benchmarks.training_memory', *sys.argv[1:], f'--alone={num_steps}', '--out=']
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    return json.loads(done.stdout.splitlines()[-1])


def print_table(table: list[dict[str, Any]]) -> None:
    """One line per training step."""
    print(f'{"":12}  planned MB  ratio   grown by MB  ratio   whole process MB  compiled in  per update')
    nan = float('nan')
    for row in table:
        grown, process = row['growth_mb'] or nan, row['peak_mb'] or nan
        print(f'{row["defense"]:12}  {row["planned_mb"]:10.1f}  {row["planned_ratio"]:5.3f}  {grown:12.1f}  '
              f'{row.get("growth_ratio", nan):5.3f}  {process:17.1f}  {row["compile_seconds"]:9.1f} s  '
              f'{row["seconds_per_update"]:8.2f} s')


def main(argv: Sequence[str]) -> None:
    """Measures natural training, then PGD-AT with every number of steps; writes and prints."""
    if len(argv) > 1:
        raise app.UsageError(f'unknown argument {argv[1]}')
    if FLAGS.alone is not None:
        runtime.start(cache_dir='')
        print(json.dumps(measure(FLAGS.alone)))
        return
    names = ('model', 'stem', 'image_size', 'channels', 'batch', 'updates')
    config = {name: FLAGS[name].value for name in names}
    table = [{'benchmark': 'training_memory', 'defense': f'pgd_at-{steps}' if steps else 'natural',
              **measure_apart(steps), 'config': config, 'seed': FLAGS.seed} for steps in (0, *FLAGS.steps)]
    for row in table:
        for name in ('planned', 'growth', 'peak'):
            if row[f'{name}_mb'] is not None:
                row[f'{name}_ratio'] = row[f'{name}_mb'] / table[0][f'{name}_mb']
    print_table(table)
    if FLAGS.out:
        rows.append(FLAGS.out, table)


if __name__ == '__main__':
    app.run(main)
