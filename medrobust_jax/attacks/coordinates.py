r"""Orthonormal bases of image space, one vector at a time, and random orders through them.

An image of shape `(*spatial, C)` has D = product of its shape basis vectors, numbered as NumPy's
`unravel_index` does. In the pixel basis vector (i_1, ..., c) is one entry; in the DCT basis it is, in
channel c alone, the product over the spatial axes of

    sqrt((2 - [k = 0]) / n) cos(pi (2 i + 1) k / (2 n)),      i = 0..n-1,

which is the type-II transform that `scipy.fft.dctn(..., norm='ortho')` inverts.

Every example visits the vectors in a random order of its own. An order is never written down: a
keyed permutation (a Feistel network) is evaluated at one position, so memory does not grow with the
batch times D.

Contents: `BASES`, `ORDERS`, `basis_vector`, `Shells`, `make_shells`, `vector_at`, `shuffled`.

Example:

    shells = make_shells((28, 28, 1), basis='dct', order='expanding')
    number = vector_at(shells, keys, position)                           # [B] in 0..783
    vector = basis_vector(number, (28, 28, 1), basis='dct', dtype=images.dtype)
"""
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core import rng
from medrobust_jax.core.types import Array

BASES = ('pixel', 'dct')
ORDERS = ('random', 'expanding', 'diagonal')
_ROUNDS = 6  # of the Feistel network; four already pass for random with good rounds


def basis_vector(number: Array, shape: tuple[int, ...], *, basis: str, dtype: jnp.dtype = jnp.float32) -> Array:
    """The basis vectors `number` `[B]` int in [0, D), `[B, *shape]`, each of L2 norm 1."""
    result = jnp.ones((number.shape[0],) + (1,) * len(shape), dtype)
    for axis, (size, index) in enumerate(zip(shape, jnp.unravel_index(number, shape), strict=True)):
        places = jnp.arange(size)
        if basis == 'pixel' or axis == len(shape) - 1:
            line = (places == index[:, None]).astype(dtype)
        else:
            # The angle modulo a full turn, in integers: pi times a large float would lose digits.
            turn = ((2 * places + 1) * index[:, None]) % (4 * size)
            scale = jnp.sqrt(jnp.where(index == 0, 1, 2).astype(dtype) / size)[:, None]
            line = scale * jnp.cos(turn.astype(dtype) * (math.pi / (2 * size)))
        result = result * line.reshape(-1, *(size if a == axis else 1 for a in range(len(shape))))
    return result


class Shells(NamedTuple):
    """Basis vectors in groups that are visited one after the other, each in random order.

    Attributes:
      table: `[D]` numbers sorted by group, or None where there is one group of all.
      starts: `[S]`, the position at which each group begins.
      sizes: `[S]`.
    """

    table: np.ndarray | None
    starts: np.ndarray
    sizes: np.ndarray


def make_shells(shape: tuple[int, ...], *, basis: str, order: str) -> Shells:
    """The groups of an order.

    Args:
      shape: of one image, `(*spatial, C)`.
      basis: 'pixel' or 'dct'; only frequencies can be ordered, so 'pixel' has one group.
      order: 'random': one group. 'expanding': the lowest eighth of the frequencies of every axis, then
        blocks that grow by 1/32 of the axis. 'diagonal': by the sum of the frequencies over the axes,
        each divided by its axis's length.
    """
    total = math.prod(shape)
    if order == 'random' or basis == 'pixel':
        return Shells(None, np.zeros(1, np.int32), np.full(1, total, np.int32))
    frequencies = np.indices(shape)[:-1].reshape(len(shape) - 1, -1)
    sides = np.asarray(shape[:-1])[:, None]
    if order == 'expanding':
        first, growth = -(-sides // 8), -(-sides // 32)
        group = np.maximum(-(-(frequencies + 1 - first) // growth), 0).max(axis=0)
    else:
        group = np.round((frequencies / sides).sum(axis=0) * sides.max()).astype(np.int64)
    _, starts, sizes = np.unique(np.sort(group), return_index=True, return_counts=True)
    table = np.argsort(group, kind='stable')
    return Shells(table.astype(np.int32), starts.astype(np.int32), sizes.astype(np.int32))


def vector_at(shells: Shells, keys: Array, position: Array) -> Array:
    """The number `[B]` of the vector at `position` `[B]` >= 0; after D positions a new order begins."""
    total = int(shells.sizes.sum())
    lap, position = position // total, position % total
    shell = jnp.searchsorted(jnp.asarray(shells.starts), position, side='right') - 1
    start, size = jnp.asarray(shells.starts)[shell], jnp.asarray(shells.sizes)[shell]
    number = start + shuffled(rng.fold(rng.fold(keys, lap), shell), position - start, size)
    return number if shells.table is None else jnp.asarray(shells.table)[number]


def shuffled(keys: Array, position: Array, size: Array) -> Array:
    """Where a random permutation of 0..size-1 sends `position`; one permutation per key.

    A balanced Feistel network on the smallest even number of bits that holds `size`, applied again
    until the value is below `size` (cycle walking), hence a bijection for every key.

    Args:
      keys: `[B]`.
      position: `[B]` int in [0, size).
      size: `[B]` int in [1, 2^30].

    Returns:
      `[B]` int32 in [0, size).

    References: Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002.
    """
    size = size.astype(jnp.uint32)
    words = jax.vmap(lambda key: jax.random.bits(key, (_ROUNDS,), jnp.uint32))(keys)
    half = 2 + jnp.sum(size[:, None] > 4 ** jnp.arange(2, 16, dtype=jnp.uint32), axis=1).astype(jnp.uint32)
    mask = (jnp.uint32(1) << half) - 1

    def permute(value: Array) -> Array:
        left, right = value >> half, value & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mixed(right + words[:, i]) & mask)
        return (left << half) | right

    value = jax.lax.while_loop(lambda v: jnp.any(v >= size), lambda v: jnp.where(v >= size, permute(v), v),
                               permute(position.astype(jnp.uint32)))
    return value.astype(jnp.int32)


def _mixed(word: Array) -> Array:
    """MurmurHash3's finalizer: every output bit depends on every input bit (Appleby, public domain)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
