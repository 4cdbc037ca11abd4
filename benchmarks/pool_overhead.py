"""What the pool costs where nobody leaves early: its time over that of the same attack in lock-step.

    python -m benchmarks.pool_overhead --out=benchmarks/results/pool_overhead.jsonl

PGD on a ResNet-18 with random weights, every example attacked to the end, the same blocks and devices. Runs
alternate and ratios are taken round by round. The pool takes one look more: its last step moves nothing, but
computes a gradient; `expected_ratio` is what that costs by count.
"""
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import rows
from experiments import runtime
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.core import rng
from medrobust_jax.evaluate.programs import in_chunks, make_attack, make_layout
from medrobust_jax.evaluate.suite import Examples, Threat, attack_grid, clean_point
from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.registry import create_model
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.tasks.classification import classification

FLAGS = flags.FLAGS
flags.DEFINE_string('out', None, 'JSONL file to which a row is added; default: none.')
flags.DEFINE_integer('image_size', 28, 'Side of the images.', lower_bound=8)
flags.DEFINE_integer('num_examples', 128, 'Images; as many slots.', lower_bound=1)
flags.DEFINE_integer('num_steps', 40, 'Of PGD.', lower_bound=1)
flags.DEFINE_integer('rounds', 3, 'Timed runs of each.', lower_bound=1)


def measure() -> dict[str, Any]:
    """One row: seconds of both and their ratio."""
    module, task, eps = create_model('resnet18', 4, stem='strided'), classification(4), 4 / 255
    draws = np.random.default_rng(0)
    images = draws.uniform(size=(FLAGS.num_examples, FLAGS.image_size, FLAGS.image_size, 1)).astype(np.float32)
    variables, model = init_variables(module, jax.random.key(0), images.shape[1:]), apply_model(module)
    layout = make_layout(data_mesh(), chunk=FLAGS.num_examples)
    attack = pgd(num_steps=FLAGS.num_steps)

    def forward(variables: Any, images: jax.Array, keys: jax.Array) -> jax.Array:
        return model(*variables, images, batch_norm='eval')[0]

    index = np.arange(len(images))
    examples = Examples(images, draws.integers(4, size=len(images)).astype(np.int32), index)
    lock_step = in_chunks(make_attack(forward, task, attack, layout, stop=False), layout)
    clean = clean_point(forward, variables, task, examples, layout=layout, seed=0)
    radii = np.full(len(images), eps, np.float32)

    def pooled() -> np.ndarray:
        (point,) = attack_grid(forward, variables, task, Threat('pgd', attack), examples, (eps,), layout=layout,
                               seed=0, clean=clean, stop_when_fooled=False)
        return point.result.images

    contenders: dict[str, Callable[[], np.ndarray]] = {
        'pool': pooled,
        'lock_step': lambda: lock_step(variables, rng.example_keys(0, index), images, examples.targets,
                                       radii).images}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, np.ndarray] = {}
    for number in range(FLAGS.rounds + 1):  # the first compiles
        for name, run in contenders.items():
            started = time.perf_counter()
            found[name] = run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    ratios = sorted(a / b for a, b in zip(seconds['pool'], seconds['lock_step'], strict=True))
    steps = FLAGS.num_steps
    return {'benchmark': 'pool_overhead', 'ratio': statistics.median(ratios), 'ratio_low': ratios[0],
            'ratio_high': ratios[-1], 'expected_ratio': 3 * (steps + 1) / (3 * steps + 1), 'seconds': seconds,
            'equal_images': bool(np.array_equal(found['pool'], found['lock_step'])), 'num_steps': steps,
            'num_examples': len(images), 'image_size': FLAGS.image_size, 'devices': layout.mesh.size,
            'block_width': layout.width}


def main(argv: Sequence[str]) -> None:
    """Measures, prints, and writes the row."""
    if len(argv) > 1:
        raise app.UsageError(f'unknown argument {argv[1]}')
    runtime.start(device_per_core=True)
    row = measure()
    print('\n'.join(f'{name}: {value}' for name, value in row.items()))
    if FLAGS.out:
        rows.append(FLAGS.out, [row])


if __name__ == '__main__':
    app.run(main)
