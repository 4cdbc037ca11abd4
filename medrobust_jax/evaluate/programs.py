"""The compiled programs of an evaluation, and the host loop that feeds them.

The network is computed in blocks of one fixed width (`core.blocks`), one after the other, on each
device's share of a chunk; chunks have one static shape, so each program compiles once and an
example's result does not depend on what it is evaluated with.

Contents: `Layout`, `make_layout`, `victim_of`, `make_score`, `make_attack`,
`row_by_row`, `in_chunks`.

Example:

    layout = make_layout(data_mesh(), width=8)
    score = in_chunks(make_score(forward, layout), layout)
    outputs = score(variables, keys, images)               # NumPy, [N, ...]
"""
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.wrappers import stop_when_fooled
from medrobust_jax.core.blocks import DEFAULT_WIDTH, in_blocks, on_each_device
from medrobust_jax.core.types import Array, Attack, AttackResult, Outputs, PyTree, Targets, Task, Victim

_ROWS_AT_ONCE = 32

# (variables, images [B, *spatial, C], keys [B]) -> outputs
ModelForward = Callable[[PyTree, Array, Array], Outputs]


class Layout(NamedTuple):
    """How examples are laid out for evaluation.

    Attributes:
      mesh: the devices, one axis 'data'.
      width: images per block; recorded with every result, since it decides the last bits.
      chunk: examples per call, a multiple of `2 * width * devices`.
    """

    mesh: Mesh
    width: int = DEFAULT_WIDTH
    chunk: int = 64


def make_layout(mesh: Mesh, *, width: int = DEFAULT_WIDTH, chunk: int = 64) -> Layout:
    """A layout whose chunk is rounded up to a multiple of `2 * width * devices`."""
    unit = 2 * width * mesh.size
    return Layout(mesh, width, -(-chunk // unit) * unit)


def victim_of(forward: ModelForward, variables: PyTree, task: Task) -> Victim:
    """The model with its weights, as an attack sees it."""
    return Victim(lambda images, keys: forward(variables, images, keys), task.loss, task.acceptable)


@lru_cache(maxsize=64)
def make_score(forward: ModelForward, layout: Layout) -> Callable[..., Outputs]:
    """The compiled `(variables, keys [chunk], images [chunk, ...]) -> outputs`.

    The same objects give the same program, so that a validation in every epoch compiles once.
    """
    def score(variables: PyTree, keys: Array, images: Array) -> Outputs:
        return in_blocks(lambda k, x: forward(variables, x, k), width=layout.width)(keys, images)

    return jax.jit(on_each_device(score, layout.mesh, num_shared=1))


@lru_cache(maxsize=64)
def make_attack(forward: ModelForward, task: Task, attack: Attack, layout: Layout, *,
                stop: bool) -> Callable[..., AttackResult]:
    """The compiled `(variables, keys, images, targets, eps [chunk]) -> AttackResult`.

    With `stop`, an example leaves once it is fooled. Cached as `make_score`.
    """
    attack = stop_when_fooled(attack) if stop else attack

    def attack_rows(variables: PyTree, keys: Array, images: Array, targets: Targets, eps: Array) -> AttackResult:
        victim = victim_of(forward, variables, task)

        def block(k: Array, x: Array, y: Targets, e: Array) -> AttackResult:
            return run(attack, victim, k, x, y, eps=e)

        return in_blocks(block, width=layout.width)(keys, images, targets, eps)

    return jax.jit(on_each_device(attack_rows, layout.mesh, num_shared=1))


@lru_cache(maxsize=64)
def row_by_row(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`function` of trees with a common leading axis N, a few rows at a time and compiled.

    A task's loss or criterion on all of a test set at once may need many times the outputs' memory (heatmaps
    of every landmark, boxes against anchors).
    """
    def alone(rows: tuple) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[0], function(*jax.tree.map(lambda leaf: leaf[None], rows)))

    mapped = jax.jit(lambda *rows: jax.lax.map(alone, rows, batch_size=_ROWS_AT_ONCE))
    return lambda *rows: jax.device_get(mapped(*rows))


def in_chunks(program: Callable[..., PyTree], layout: Layout, *,
              progress: Callable[[int], None] = lambda rows: None) -> Callable[..., PyTree]:
    """Feeds a compiled program with chunks of static shape; the last one is padded with its first row.

    Args:
      program: `(variables, *rows) -> tree`, all rows with leading axis `layout.chunk`.
      layout: gives the chunk.
      progress: called with the number of examples finished after every chunk.

    Returns:
      `(variables, *arrays, rows=None) -> tree` for arrays of any leading axis N >= 1, with NumPy
      results for all of it, or for the positions `rows` [n], n >= 1. Arrays are handed over whole so
      that taking rows out of them has one shape and compiles once, however many are asked for.
    """
    def run_chunks(variables: PyTree, *arrays: Any, rows: np.ndarray | None = None) -> PyTree:
        rows = np.arange(jax.tree.leaves(arrays)[0].shape[0]) if rows is None else rows
        parts = []
        for start in range(0, len(rows), layout.chunk):
            chosen = rows[start:start + layout.chunk]
            count = len(chosen)
            padded = np.append(chosen, np.full(layout.chunk - count, chosen[0]))
            part = jax.device_get(program(variables, *jax.tree.map(lambda a, p=padded: a[p], arrays)))
            parts.append(jax.tree.map(lambda a, c=count: a[:c], part))
            progress(count)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    return run_chunks
