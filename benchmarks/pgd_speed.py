"""PGD's speed against PyTorch: images x steps per second, as ratios in one run.

    python -m benchmarks.pgd_speed --out=benchmarks/results/pgd_speed.jsonl

All contenders attack the same images with the same weights on the same CPU cores, one after the other,
again and again; a round's ratio compares calls that were made within a minute. README.md says what is
counted.
"""
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import torch
from absl import app, flags

from benchmarks import contenders, rows, torch_resnet
from benchmarks.contenders import CONTENDERS, REFERENCE, Contender, Problem
from experiments import runtime
from medrobust_jax.losses.classification import cross_entropy, prediction_is_right

FLAGS = flags.FLAGS
flags.DEFINE_string('out', None, 'JSONL file to which one row per contender is added; default: none.')
flags.DEFINE_string('model', 'resnet18', 'A ResNet of basic blocks.')
flags.DEFINE_string('stem', 'large', "The ResNet's stem: small, strided or large (PyTorch's own).")
flags.DEFINE_integer('image_size', 64, 'Height and width of the images in pixels.', lower_bound=8)
flags.DEFINE_integer('channels', 3, 'Channels of the images.', lower_bound=1)
flags.DEFINE_integer('batch', 64, 'Images.', lower_bound=4)
flags.DEFINE_integer('steps', 20, 'Steps of PGD.', lower_bound=1)
flags.DEFINE_float('eps', None, 'Radius; default: where about half of the images fall.')
flags.DEFINE_integer('block_width', 8, "Images per block of the evaluation's program.", lower_bound=1)
flags.DEFINE_integer('repeats', 5, 'Timed rounds, after one that is not.', lower_bound=1)
flags.DEFINE_integer('threads', 2, 'CPU cores for every contender.', lower_bound=1)
flags.DEFINE_list('contenders', list(CONTENDERS), f'Some of {", ".join(CONTENDERS)}.')
flags.DEFINE_float('tolerance', 0.1, 'Largest difference between robust accuracies that counts as equal.')
flags.DEFINE_integer('seed', 0, 'Of weights, images and noise.')
flags.DEFINE_bool('quick', False, '16 images of 32 pixels, 3 steps, 2 rounds: whether everything runs.')


def limit_cores(count: int) -> None:
    """Keeps this process, JAX's thread pool included, on `count` cores; must come before JAX starts."""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    torch.set_num_threads(count)
    jax.config.update('jax_platforms', 'cpu')


def seconds_of(contender: Contender, eps: float) -> tuple[float, Any]:
    """The wall time of one attack, and its result."""
    started = time.perf_counter()
    result = contender.attack(eps)
    return time.perf_counter() - started, result


def time_in_rounds(field: dict[str, Contender], eps: float, *,
                   repeats: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Times A B C A B C ...; returns the last results, and per contender the seconds of every round.

    The first round is the first call ever: it compiles.
    """
    results, seconds = {}, {name: [] for name in field}
    for _ in range(1 + repeats):
        for name, contender in field.items():
            spent, results[name] = seconds_of(contender, eps)
            seconds[name].append(spent)
    return results, seconds


def count_traces(contender: Contender, problem: Problem) -> dict[str, int]:
    """How often the model is traced again for a new eps and for a last, partial batch; both should be 0."""
    counts = {}
    before = len(problem.traces)
    contender.attack(problem.eps / 2)
    counts['new_eps'] = len(problem.traces) - before
    if contender.attack_part is not None:
        before = len(problem.traces)
        contender.attack_part(len(problem.images) - 3)
        counts['partial_batch'] = len(problem.traces) - before
    return counts


def quality(problem: Problem, images: np.ndarray) -> dict[str, float]:
    """Robust accuracy and mean loss on attacked images, by one judge for all; and how far they moved."""
    logits = problem.peer(torch_resnet.to_torch(images)).numpy()
    return {'robust_accuracy': float(np.mean(prediction_is_right(logits, problem.labels))),
            'mean_loss': float(np.mean(cross_entropy(logits, problem.labels))),
            'largest_move': float(np.abs(images - problem.images).max())}


def summary(seconds: list[float], reference: list[float] | None, work: int) -> dict[str, Any]:
    """Throughput, first and second call, and ratios to the reference, round by round."""
    row = {'images_steps_per_second': work / float(np.median(seconds[1:])), 'seconds': seconds[1:],
           'first_call_seconds': seconds[0], 'second_call_seconds': seconds[1],
           'compile_seconds': max(0.0, seconds[0] - float(np.median(seconds[1:])))}
    if reference is not None:
        ratios = np.array(reference[1:]) / np.array(seconds[1:])
        row |= {'ratio': float(np.median(ratios)), 'ratio_low': float(ratios.min()),
                'ratio_high': float(ratios.max())}
    return row


def print_table(table: list[dict[str, Any]]) -> None:
    """One line per contender."""
    print(f'{"":20}  img x steps/s   ratio (min - max)     first call  robust  mean loss')
    for row in table:
        ratio = '' if 'ratio' not in row else (
            f'{row["ratio"]:5.2f} ({row["ratio_low"]:.2f} - {row["ratio_high"]:.2f})')
        print(f'{row["contender"]:20} {row["images_steps_per_second"]:14.1f}   {ratio:20} '
              f'{row["first_call_seconds"]:9.1f} s  {row["robust_accuracy"]:6.3f}  {row["mean_loss"]:9.4f}'
              + (f'  traced again: {row["traced_again"]}' if row['traced_again'] else ''))


def settings() -> dict[str, Any]:
    """What was asked for, as plain values."""
    names = ('model', 'stem', 'image_size', 'channels', 'batch', 'steps', 'eps', 'block_width', 'repeats',
             'threads')
    config = {name: FLAGS[name].value for name in names}
    if FLAGS.quick:
        config |= {'image_size': 32, 'batch': 16, 'steps': 3, 'repeats': 2}
    return config


def main(argv: Sequence[str]) -> None:
    """Makes the problem, times everybody, writes and prints."""
    if len(argv) > 1:
        raise app.UsageError(f'unknown argument {argv[1]}')
    unknown = set(FLAGS.contenders) - set(CONTENDERS)
    if unknown:
        raise app.UsageError(f'--contenders={",".join(sorted(unknown))}: known are {", ".join(CONTENDERS)}')
    limit_cores(FLAGS.threads)
    runtime.start(cache_dir='')  # compile times are those of a first run
    config = settings()
    problem = contenders.make_problem(
        model=config['model'], stem=config['stem'], image_size=config['image_size'],
        num_channels=config['channels'], batch_size=config['batch'], num_steps=config['steps'],
        eps=config['eps'], block_width=config['block_width'], seed=FLAGS.seed)
    field = {name: CONTENDERS[name](problem) for name in FLAGS.contenders}
    results, seconds = time_in_rounds(field, problem.eps, repeats=config['repeats'])
    config |= {'eps': problem.eps, 'relative_step_size': contenders.RELATIVE_STEP_SIZE, 'reference': REFERENCE,
               'cpu': platform.processor() or platform.machine()}
    table = [{'benchmark': 'pgd_speed', 'contender': name,
              **summary(seconds[name], seconds.get(REFERENCE), config['batch'] * config['steps']),
              **quality(problem, contender.images(results[name])),
              'traced_again': count_traces(contender, problem) if name.startswith('jax') else {},
              'config': config, 'seed': FLAGS.seed} for name, contender in field.items()]
    print_table(table)
    if FLAGS.out:
        rows.append(FLAGS.out, table)
    accuracies = [row['robust_accuracy'] for row in table]
    if max(accuracies) - min(accuracies) > FLAGS.tolerance:
        raise SystemExit(f'robust accuracies from {min(accuracies):.3f} to {max(accuracies):.3f} differ by more '
                         f'than --tolerance={FLAGS.tolerance}: the attacks are not equally strong')


if __name__ == '__main__':
    app.run(main)
