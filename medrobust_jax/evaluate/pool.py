"""The pool: an attack over a queue of items, in slots that are refilled as soon as an example leaves.

In lock-step every example pays for the slowest of its batch. Here an example that is done leaves
its slot, and the next item of the queue enters, at an iteration, radius and key of its own. When
the queue is empty, what is left is moved together, so that blocks without work are skipped.

    fill free slots -> advance all slots by a few looks -> take out what is done -> ...

An item's result does not depend on its slot, its neighbors, or when it entered.

Contents: `Ended`, `Pool`.

Example:

    pool = Pool(slots, layout, variables, examples_of_item, num_steps=100, items=items, stops=True)
    while not pool.idle:
        for ended in pool.advance():
            ...                                    # what was found; perhaps pool.put(successor)
"""
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.types import PyTree
from medrobust_jax.evaluate.programs import Layout
from medrobust_jax.evaluate.queue import Item
from medrobust_jax.evaluate.slots import Entrants, Held, SlotPrograms

MOST_LOOKS = 16  # between two visits of the host
WASTE = 0.02  # share of looks that may fall on examples already done, between two visits


class Ended(NamedTuple):
    """What one run of an attack found on one example.

    Attributes:
      item: which run.
      image: `[*spatial, C]`, the strongest image.
      loss: the attack's loss there.
      acceptable: whether the model withstood every image looked at.
      first_fooled: the first look that fooled the model; -1 if none did.
      looks: steps taken until the example was done, looks included.
    """

    item: Item
    image: np.ndarray
    loss: np.ndarray
    acceptable: bool
    first_fooled: int
    looks: int


class Pool:
    """Slots on the devices and a queue on the host.

    Args:
      slots: the compiled programs.
      layout: `layout.chunk` slots.
      variables: the model's weights.
      entrants: `items -> Entrants` with one row per item, NumPy arrays and keys.
      num_steps: the attack's moves.
      items: the queue.
      stops: whether examples leave early, once they are fooled.

    Attributes:
      looks_computed: looks times rows that the devices computed, done rows and padding included.
    """

    def __init__(self, slots: SlotPrograms, layout: Layout, variables: PyTree,
                 entrants: Callable[[list[Item]], Entrants], *, num_steps: int, items: Iterable[Item],
                 stops: bool):
        unit = 2 * layout.width * layout.mesh.size
        if layout.chunk % unit:
            raise ValueError(f'layout.chunk = {layout.chunk} must be a multiple of 2 * width * devices = {unit}')
        self._slots, self._layout, self._variables, self._entrants = slots, layout, variables, entrants
        self._num_steps = num_steps
        self._queue: deque[Item] = deque(items)
        self._held_items: list[Item | None] = [None] * layout.chunk
        self._held: Held | None = None
        self._leaving = 0.05 if stops else 0.0  # share of examples that leave per look, a moving average
        self.looks_computed = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing left to do."""
        return not self._queue and not any(item is not None for item in self._held_items)

    def put(self, item: Item) -> None:
        """Appends to the queue. First come, first served leaves no long chain of items to the end."""
        self._queue.append(item)

    def advance(self) -> list[Ended]:
        """Fills the slots, advances them, and takes out what is done."""
        held = self._fill()
        active = np.asarray([item is not None for item in self._held_items])
        before = np.array(held.age)
        count = self._looks_before_next_visit(before[active])
        self._held, looks = self._slots.advance(self._variables, held,
                                                np.full(self._layout.chunk, count, np.int32))
        looks, age, done = jax.device_get((looks, self._held.age, self._held.state.done))
        self.looks_computed += int(looks.sum())
        rows = np.flatnonzero(done & active)
        early = int((done & active & (age <= self._num_steps)).sum())
        keep = .8 ** int(looks.max())
        self._leaving = keep * self._leaving + (1 - keep) * early / max(int((age - before)[active].sum()), 1)
        return self._take_out(self._held, rows, age) if rows.size else []

    def _looks_before_next_visit(self, age: np.ndarray) -> int:
        """As many as waste no more than `WASTE` of the looks on examples that will be done by then."""
        remaining = self._num_steps + 1 - age
        best = 1
        for count in range(2, min(MOST_LOOKS, int(remaining.max())) + 1):
            ended = np.maximum(0, count - remaining).sum()
            fooled = self._leaving * len(age) * count**2 / 2
            if ended + fooled <= WASTE * len(age) * count:
                best = count
        return best

    def _take_out(self, held: Held, rows: np.ndarray, age: np.ndarray) -> list[Ended]:
        state = held.state
        images, loss, acceptable, first = jax.device_get(
            (state.best_images, state.best_loss, state.acceptable, state.first_fooled))
        ended = []
        for row in rows:
            item = self._held_items[row]
            assert item is not None  # only slots in use are done
            ended.append(Ended(item, np.array(images[row]), loss[row], bool(acceptable[row]),
                               int(first[row]), int(age[row])))
            self._held_items[row] = None
        return ended

    def _fill(self) -> Held:
        """Lets items into free slots; where the queue cannot fill them, moves what is left together."""
        size, per_device = self._layout.chunk, self._layout.chunk // self._layout.mesh.size
        free = [slot for slot in range(size) if self._held_items[slot] is None]
        entering = [self._queue.popleft() for _ in range(min(len(free), len(self._queue)))]
        if self._held is not None and not entering and (not free or self._is_compact(per_device)):
            return self._held
        source = np.arange(size, dtype=np.int32) % per_device
        if len(entering) < len(free):
            source = self._move_together(per_device)
            free = [slot for slot in range(size) if self._held_items[slot] is None]
            free.sort(key=lambda slot: slot % per_device)  # fill the fullest blocks of every device alike
        fresh = np.zeros(size, bool)
        for slot, item in zip(free, entering, strict=False):
            self._held_items[slot], fresh[slot] = item, True
        anybody = next(item for item in self._held_items if item is not None)
        new = self._entrants([item if item is not None and fresh[slot] else anybody
                              for slot, item in enumerate(self._held_items)])
        held = self._slots.empty(self._variables, new) if self._held is None else self._held
        self._held = self._slots.refill(self._variables, held, source, fresh, new)
        return self._held

    def _move_together(self, per_device: int) -> np.ndarray:
        """Puts the slots in use first on every device; returns where each slot's content comes from."""
        source, moved = [], []
        for start in range(0, len(self._held_items), per_device):
            items = self._held_items[start:start + per_device]
            order = sorted(range(per_device), key=lambda slot: items[slot] is None)
            source += order
            moved += [items[slot] for slot in order]
        self._held_items = moved
        return np.asarray(source, np.int32)

    def _is_compact(self, per_device: int) -> bool:
        """Whether no block could be emptied by moving examples together."""
        width = self._layout.width
        busy = np.asarray([item is not None for item in self._held_items])
        blocks = busy.reshape(-1, width).any(axis=1).reshape(-1, per_device // width).sum(axis=1)
        needed = -(-busy.reshape(-1, per_device).sum(axis=1) // width)
        return bool((blocks <= needed).all())

    def snapshot(self) -> dict[str, np.ndarray]:
        """Everything that decides what follows, as arrays of numbers; `restore` continues from it bit for bit."""
        nobody = Item(-1, 0)
        arrays = {'queue': np.asarray([*self._queue, nobody]),
                  'slots': np.asarray([item or nobody for item in self._held_items]),
                  'counters': np.asarray([self._leaving, self.looks_computed])}
        busy = any(item is not None for item in self._held_items)
        leaves = jax.tree.leaves(self._held) if busy else []
        return arrays | {f'held/{i}': np.array(_plain(leaf)) for i, leaf in enumerate(leaves)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes back to a `snapshot` of a pool with the same programs, layout and data."""
        self._queue = deque(Item(*map(int, row)) for row in arrays['queue'][:-1])
        self._held_items = [None if row[0] < 0 else Item(*map(int, row)) for row in arrays['slots']]
        self._leaving, self.looks_computed = float(arrays['counters'][0]), int(arrays['counters'][1])
        busy = [item for item in self._held_items if item is not None]
        self._held = None
        if busy:
            entrants = self._entrants([item or busy[0] for item in self._held_items])
            shaped = self._slots.empty(self._variables, entrants)
            leaves, tree = jax.tree.flatten(shaped)
            self._held = jax.tree.unflatten(tree, [_as_leaf(arrays[f'held/{i}'], leaf)
                                                   for i, leaf in enumerate(leaves)])


def _plain(leaf: Any) -> Any:
    """A leaf as numbers; NumPy has no typed keys."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _as_leaf(array: np.ndarray, like: Any) -> Any:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.random.wrap_key_data(jnp.asarray(array)), like.sharding)
    return jax.device_put(array, like.sharding)
