"""AutoAttack on a trained model: this project's pool against the authors' PyTorch code, same weights, one run.

    python -m benchmarks.autoattack_speed --config=configs/retinamnist.py:pgd_at \
        --workdir=runs/retinamnist/pgd_at/0 \
        --benchmark_eps=0.0157 --out=benchmarks/results/autoattack_speed.jsonl

Needs the 'peers' extra and pyautoattack (`make peers`). Times are interleaved; compilation is recorded apart
(the first run). Passes are counted, not assumed: ours by the pool, the peer's by a module that counts the
images it is given and the gradients that come back. With fewer than 10 classes both use the C - 1 targets
that exist.
"""
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from absl import flags, logging
from ml_collections import ConfigDict
from pyautoattack import AutoAttack

from benchmarks import rows, torch_resnet
from experiments import main
from experiments.evaluate import subject_of
from medrobust_jax.evaluate.ensembles import autoattack
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.suite import attack_grid, attack_in_turn, clean_point
from medrobust_jax.parallel.mesh import data_mesh

flags.DEFINE_float('benchmark_eps', 4 / 255, 'Radius.')
flags.DEFINE_enum('benchmark_norm', 'linf', ['linf', 'l2', 'l1'], 'Norm of the ball.')
flags.DEFINE_integer('num_examples', 128, 'Test images, a share of every class.')
flags.DEFINE_integer('repeats', 3, 'Interleaved runs of each contender.')
flags.DEFINE_integer('num_queries', 5000, "Square's queries; 5000 is AutoAttack.")
flags.DEFINE_string('out', None, 'JSON lines to append to.')


class _Counting(torch.nn.Module):
    """Counts images that pass forwards and gradients that pass backwards."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.forwards = self.backwards = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The module's logits."""
        self.forwards += len(images)
        logits = self.module(images.contiguous(memory_format=torch.channels_last))
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: torch.Tensor) -> None:
        self.backwards += len(gradient)


def measure(config: ConfigDict, workdir: str, *, eps: float, norm: str, num_examples: int, repeats: int,
            num_queries: int) -> dict[str, Any]:
    """One row: seconds, passes and robust accuracy of both."""
    config.eval.max_examples = num_examples
    subject, examples, task = subject_of(config, workdir)
    images, labels = examples.images, np.asarray(examples.targets)
    targets = min(9, task.num_outputs - 1)
    peer = torch_resnet.ResNet(num_outputs=task.num_outputs, num_channels=images.shape[-1],
                               **{k: v for k, v in config.model.options.items() if k != 'norm'})
    peer = torch_resnet.carry_over(peer, *subject.variables).to(memory_format=torch.channels_last)
    layout = make_layout(data_mesh(), width=config.eval.block_width, chunk=config.eval.chunk)
    model = (subject.forward, subject.variables, task)
    members = autoattack(num_classes=task.num_outputs, norm=norm, num_queries=num_queries).members

    def ours() -> dict[str, Any]:
        clean = clean_point(*model, examples, layout=layout, seed=0)
        stages = attack_in_turn(members, lambda member, previous: attack_grid(
            *model, member, examples, (eps,), layout=layout, seed=0, clean=clean, previous=previous))
        (last,) = stages[-1]
        return {'standing': last.result.acceptable, 'forward': last.forward_passes,
                'backward': last.backward_passes, 'passes_needed': last.passes_needed,
                'standing_after': {m.name: int(s[0].result.acceptable.sum())
                                   for m, s in zip(members, stages, strict=True)},
                'seconds_after': {m.name: s[0].wall_seconds for m, s in zip(members, stages, strict=True)}}

    x, y = torch_resnet.to_torch(images), torch.from_numpy(labels).long()
    with torch.no_grad():
        difference = float(np.abs(peer(x).numpy() - np.asarray(
            clean_point(*model, examples, layout=layout, seed=0).outputs)).max())
    if difference > 1e-3:
        raise ValueError(f'the two models differ by {difference} in their logits: nothing would be compared')

    def theirs() -> dict[str, Any]:
        counting = _Counting(peer)
        attack = AutoAttack(counting, norm=norm.capitalize(), eps=eps, version='standard', seed=0)
        attack.verbose = False
        for part in (attack.apgd_targeted, attack.fab):  # 9; APGD's 5 in L1
            part.n_target_classes = min(part.n_target_classes, targets)
        attack.square.n_queries = num_queries
        found = attack.run_standard_evaluation(x, y, batch_size=250)
        found = found[0] if isinstance(found, tuple) else found
        forward, backward = counting.forwards / len(x), counting.backwards / len(x)
        with torch.no_grad():
            standing = (peer(found).argmax(1) == y).numpy()
        return {'standing': standing, 'forward': forward, 'backward': backward}

    first = _timed(ours)
    times: dict[str, list[float]] = {'ours': [], 'theirs': []}
    results: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        for name, run in (('ours', ours), ('theirs', theirs)):
            seconds, results[name] = _timed(run)
            times[name].append(seconds)
            logging.info('%s: %.1f s, robust accuracy %.4f', name, seconds, results[name]['standing'].mean())
    ratios = sorted(b / a for a, b in zip(times['ours'], times['theirs'], strict=True))
    a, b = results['ours'], results['theirs']
    return {'benchmark': 'autoattack_speed', **subject.identity, 'num_classes': task.num_outputs,
            'num_targets': targets, 'norm': norm, 'eps': eps, 'num_examples': len(images),
            'num_queries': num_queries,
            'block_width': layout.width, 'slots': layout.chunk, 'largest_logit_difference': difference,
            'ratio': statistics.median(ratios), 'ratio_low': ratios[0], 'ratio_high': ratios[-1],
            'seconds_ours': times['ours'], 'seconds_theirs': times['theirs'], 'seconds_ours_first': first[0],
            'robust_accuracy_ours': float(a['standing'].mean()),
            'robust_accuracy_theirs': float(b['standing'].mean()),
            'verdicts_that_differ': int((a['standing'] != b['standing']).sum()),
            'forward_ours': a['forward'], 'backward_ours': a['backward'], 'forward_theirs': b['forward'],
            'backward_theirs': b['backward'], 'passes_needed': a['passes_needed'],
            'standing_after': a['standing_after'], 'seconds_after': a['seconds_after'],
            'threads': torch.get_num_threads(), 'devices': jax.device_count()}


def _timed(run: Callable[[], dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def _work(config: ConfigDict, workdir: str) -> None:
    chosen = flags.FLAGS
    row = measure(config, workdir, eps=chosen.benchmark_eps, norm=chosen.benchmark_norm,
                  num_examples=chosen.num_examples, repeats=chosen.repeats, num_queries=chosen.num_queries)
    print('\n'.join(f'{name}: {value}' for name, value in row.items()))
    if chosen.out:
        rows.append(chosen.out, [row])


if __name__ == '__main__':
    main.launch(_work, device_per_core=True)
