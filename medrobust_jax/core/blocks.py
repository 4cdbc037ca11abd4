"""A function over a batch, computed in blocks of a fixed width.

XLA's results for a network depend in the last bits on the compiled batch width. Computed in blocks
of one fixed width, with padding, a row's result depends on nothing but the row: batch size, order,
padding and neighbors do not change a bit for one build and one kind of device.

Contents: `in_blocks`, `on_each_device`, `DEFAULT_WIDTH`.

Example:

    attack_block = lambda keys, images, labels: run(attack, victim, keys, images, labels, eps=eps)
    result = in_blocks(attack_block, width=8)(keys, images, labels)
"""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

DEFAULT_WIDTH = 8


def in_blocks(fn: Callable[..., Any], *, width: int = DEFAULT_WIDTH) -> Callable[..., Any]:
    """Maps `fn` over the leading axis in blocks of `width` rows.

    The batch is padded to a multiple of `width` with copies of its first row, and to two blocks at
    least: a loop of one trip would be inlined and compiled differently. The blocks run one after
    the other (`lax.map`), so memory does not grow with the batch.

    Args:
      fn: takes trees of arrays with leading axis `width` and returns such a tree; rows must not
        depend on each other.
      width: the block's width, >= 1.

    Returns:
      A function of trees with any leading axis B >= 1, returning trees with leading axis B.

    Raises:
      ValueError: for width < 1; when called, for an empty batch or arguments of different lengths.
    """
    if width < 1:
        raise ValueError(f'block width {width} must be at least 1')

    def blocked(*args: Any) -> Any:
        sizes = [leaf.shape[0] for leaf in jax.tree.leaves(args)]
        size = sizes[0]
        if size < 1 or set(sizes) != {size}:
            raise ValueError(f'leading axes {sizes} must be equal and at least 1')
        blocks = max(2, -(-size // width))
        rows = jnp.where(jnp.arange(blocks * width) < size, jnp.arange(blocks * width), 0)
        padded = jax.tree.map(lambda a: a[rows].reshape(blocks, width, *a.shape[1:]), args)
        out = jax.lax.map(lambda block: fn(*block), padded)
        return jax.tree.map(lambda a: a.reshape(blocks * width, *a.shape[2:])[:size], out)

    return blocked


def on_each_device(fn: Callable[..., Any], mesh: Mesh, *, num_shared: int = 0) -> Callable[..., Any]:
    """Runs `fn` on every device's share of the leading axis, without communication.

    Args:
      fn: a function of trees with a leading axis, such as one from `in_blocks`.
      mesh: a mesh with one axis, 'data'; the leading axis must be a multiple of its size.
      num_shared: how many leading arguments are given whole to every device (model weights).

    Returns:
      The function under `shard_map`.
    """
    rows = PartitionSpec('data')

    def on_devices(*args: Any) -> Any:
        specs = (PartitionSpec(),) * num_shared + (rows,) * (len(args) - num_shared)
        return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(*args)

    return on_devices
