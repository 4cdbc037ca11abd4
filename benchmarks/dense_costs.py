"""What general adversarial training and attacks on volumes cost.

    python -m benchmarks.dense_costs --what=margins --out=benchmarks/results/dense_costs.jsonl
    python -m benchmarks.dense_costs --what=volume --out=benchmarks/results/dense_costs.jsonl
    python -m benchmarks.dense_costs --what=detector --height=120 --out=benchmarks/results/dense_costs.jsonl

margins: seconds per update of adaptive margins (AMAT), of SAT (PGD-AT on L2) and of SAT with half the loss clean,
all with the same number of attack steps on the same U-Net; updates alternate, ratios are taken round by round.
volume: memory that the compiler reserves for one attack step on a 96^3 volume, over that of a natural training
step of the same 3-D U-Net.
detector: minutes that PGD-100 at one radius takes on BCCD's test split (or as many drawn smears, without
MEDROBUST_DATA), compilation and metrics included, on a device per core. Weights are random: speed does not depend
on them.
"""
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import rows
from configs import bccd
from experiments import build, runtime
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import perturb
from medrobust_jax.core import rng
from medrobust_jax.core.types import Defense, Task, Victim
from medrobust_jax.defenses.adaptive_margin import adaptive_margin
from medrobust_jax.defenses.pgd_at import pgd_at
from medrobust_jax.defenses.radius import constant
from medrobust_jax.defenses.standard import natural
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.suite import Threat, attack_grid
from medrobust_jax.models.forward import apply_model, eval_forward, init_variables
from medrobust_jax.models.registry import create_model
from medrobust_jax.parallel.mesh import data_mesh, put_batch
from medrobust_jax.tasks.segmentation import segmentation
from medrobust_jax.train.optim import create_optimizer
from medrobust_jax.train.state import create_state
from medrobust_jax.train.step import make_train_step

FLAGS = flags.FLAGS
flags.DEFINE_enum('what', 'margins', ['margins', 'volume', 'detector'], 'Which comparison.')
flags.DEFINE_string('out', None, 'JSONL file to which rows are added; default: none.')
flags.DEFINE_integer('image_size', 64, 'Side of the images of `margins`.', lower_bound=16)
flags.DEFINE_integer('volume_size', 96, 'Side of the volume.', lower_bound=16)
flags.DEFINE_integer('height', 120, 'Of the smears of `detector`, which are 4:3.', lower_bound=48)
flags.DEFINE_integer('batch', 16, 'Images of `margins`.', lower_bound=1)
flags.DEFINE_integer('num_steps', 20, 'Of the training attacks.', lower_bound=1)
flags.DEFINE_integer('rounds', 5, 'Updates of each contender that are timed.', lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Of weights and images.')

NUM_CLASSES = 4
MEGABYTE = 2**20


def images_of(shape: Sequence[int], count: int) -> dict[str, np.ndarray]:
    """A batch of noise with random label maps: costs do not depend on what is seen."""
    draws = np.random.default_rng(FLAGS.seed)
    return {'image': draws.uniform(size=(count, *shape, 1)).astype(np.float32),
            'segmentation': draws.integers(NUM_CLASSES, size=(count, *shape)).astype(np.int32),
            'mask': np.ones(count, bool), 'index': np.arange(count, dtype=np.int32)}


def training(module: Any, defense: Defense, batch: dict[str, np.ndarray]) -> tuple[Callable[..., Any], Any]:
    """The compiled training step and a state to start from."""
    mesh, forward, shape = data_mesh(), apply_model(module), batch['image'].shape[1:]
    optimizer = create_optimizer('sgd', 0.01)
    state = create_state(forward, *init_variables(module, jax.random.key(FLAGS.seed), shape), defense, optimizer,
                         num_train=len(batch['mask']), image_shape=shape, seed=FLAGS.seed, mesh=mesh)
    step = make_train_step(forward, defense, optimizer, augment=None, seed=FLAGS.seed, ema_decay=None, mesh=mesh)
    return step.lower(state, put_batch(mesh, batch)).compile(), state


def margins() -> dict[str, Any]:
    """One row: seconds per update and their ratios to SAT's."""
    task, steps = segmentation(NUM_CLASSES), FLAGS.num_steps
    attack = pgd(num_steps=steps, norm='l2', relative_step_size=4 / steps)
    contenders = {
        'sat': pgd_at(task, attack, radius=constant(1.0), attack_batch_norm='batch_stats'),
        'sat_half_clean': pgd_at(task, attack, radius=constant(1.0), clean_weight=0.5,
                                 attack_batch_norm='batch_stats'),
        'amat': adaptive_margin(task, delta=1.0, num_steps=steps, attack_batch_norm='batch_stats'),
    }
    module = create_model('unet', NUM_CLASSES, width=16, depth=3)
    batch = images_of((FLAGS.image_size,) * 2, FLAGS.batch)
    prepared = {name: training(module, defense, batch) for name, defense in contenders.items()}
    placed, seconds = put_batch(data_mesh(), batch), {name: [] for name in prepared}
    for number in range(FLAGS.rounds + 1):  # the first is not timed
        for name, (step, state) in prepared.items():
            started = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, placed))
            prepared[name] = step, state
            if number:
                seconds[name].append(time.perf_counter() - started)
    row = {'seconds_per_update': {name: statistics.median(times) for name, times in seconds.items()}}
    for name in ('sat_half_clean', 'amat'):
        ratios = sorted(a / b for a, b in zip(seconds[name], seconds['sat'], strict=True))
        row[f'{name}_over_sat'] = [statistics.median(ratios), ratios[0], ratios[-1]]
    return {**row, 'image_size': FLAGS.image_size, 'batch': FLAGS.batch, 'num_steps': steps}


def volume() -> dict[str, Any]:
    """One row: memory of an attack step and of a natural training step on one volume."""
    task, size = segmentation(NUM_CLASSES), FLAGS.volume_size
    module = create_model('unet', NUM_CLASSES, num_spatial_dims=3, width=16, depth=4)
    batch = images_of((size,) * 3, 1)
    natural_step, _ = training(module, natural(task), batch)
    attack_mb = _reserved(attack_step(task, module, batch))
    natural_mb = _reserved(natural_step)
    return {'volume_size': size, 'natural_training_mb': natural_mb, 'attack_mb': attack_mb,
            'attack_over_natural': attack_mb / natural_mb}


def attack_step(task: Task, module: Any, batch: dict[str, np.ndarray]) -> Any:
    """The compiled PGD-2 on the trained model: two gradients with respect to the volume."""
    variables = init_variables(module, jax.random.key(FLAGS.seed), batch['image'].shape[1:])

    def attacked(variables: Any, keys: jax.Array, images: jax.Array, targets: jax.Array) -> jax.Array:
        victim = Victim(eval_forward(module, *variables), task.loss, task.acceptable)
        return perturb(pgd(num_steps=2, norm='l2'), victim, keys, images, targets, eps=1.0)

    keys = rng.example_keys(FLAGS.seed, batch['index'])
    return jax.jit(attacked).lower(variables, keys, batch['image'], batch['segmentation']).compile()


def detector() -> dict[str, Any]:
    """One row: minutes of PGD-100 on every test image."""
    config, size = bccd.get_config('natural'), (FLAGS.height, FLAGS.height * 4 // 3)
    config.data.options.size = size
    if 'MEDROBUST_DATA' not in os.environ:
        config.data.name, config.data.options = 'cell_phantom', {'size': size, 'num_examples': 72}
    source = build.load_split(config, 'test', None)
    task = build.build_task(config, source.info)
    module, examples = build.build_model(config, task), build.examples_of(source, task, None)
    variables = init_variables(module, jax.random.key(FLAGS.seed), source.info.image_shape)
    model = apply_model(module)

    def forward(variables: Any, images: jax.Array, keys: jax.Array) -> Any:
        return model(*variables, images, batch_norm='eval')[0]

    layout = make_layout(data_mesh(), chunk=config.eval.chunk)
    threat, started = Threat('pgd100', pgd(num_steps=100, norm='l2'), 'l2'), time.perf_counter()
    (point,) = attack_grid(forward, variables, task, threat, examples, (config.defense.eps,), layout=layout,
                           seed=FLAGS.seed, stop_when_fooled=False)
    task.metrics(point.outputs, examples.targets, examples.groups)
    return {'dataset': config.data.name, 'size': size, 'num_examples': len(examples.index), 'num_steps': 100,
            'minutes': (time.perf_counter() - started) / 60, 'devices': layout.mesh.size}


def _reserved(compiled: Any) -> float:
    plan = compiled.memory_analysis()
    return (plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
            + plan.temp_size_in_bytes) / MEGABYTE


def main(argv: Sequence[str]) -> None:
    """Measures, prints, and writes the row."""
    if len(argv) > 1:
        raise app.UsageError(f'unknown argument {argv[1]}')
    runtime.start(cache_dir='', device_per_core=FLAGS.what == 'detector')
    measure = {'margins': margins, 'volume': volume, 'detector': detector}[FLAGS.what]
    row = {'benchmark': f'dense_costs/{FLAGS.what}', **measure()}
    print('\n'.join(f'{name}: {value}' for name, value in row.items()))
    if FLAGS.out:
        rows.append(FLAGS.out, [row])


if __name__ == '__main__':
    app.run(main)
