r"""What is attacked next: restarts, targets and radii as items of a queue.

An item is one run of an attack on one example. What follows it depends on its outcome alone:

    survived:  next restart -> next target -> a larger radius
    fooled:    all larger radii are broken too; a smaller one if the search leaves a gap

`ascending` climbs from the smallest radius and never attacks an example beyond the radius that broke
it. `bisection` halves the gap between the largest radius withstood and the smallest that was not.

Contents: `Item`, `Search`, `first_items`, `successor`, `every_item`.

Example:

    search = Search(num_eps=4, num_restarts=5, order='ascending')
    items = first_items(search, rows=[0, 1, 2], limits=[4, 4, 2])
    following = successor(search, items[0], fooled=False)           # restart 1 of the same radius
"""
from collections.abc import Sequence
from typing import NamedTuple

from medrobust_jax.core.checks import did_you_mean

ORDERS = ('ascending', 'bisection')


class Item(NamedTuple):
    """One run of an attack on one example.

    Attributes:
      row: the example's position.
      eps: the radius's position in the ascending grid.
      restart: 0, 1, ...: decides the example's key.
      rank: the target for targeted attacks: 1 is the runner-up class of the clean outputs.
      low: the largest position known to be withstood; -1 for none.
      high: the smallest position known to be broken; the example's limit where none is.
    """

    row: int
    eps: int
    restart: int = 0
    rank: int = 1
    low: int = -1
    high: int = 0


class Search(NamedTuple):
    """How a grid of radii is searched.

    Attributes:
      num_eps: radii in the grid.
      num_restarts: runs from different keys at every radius and target, >= 1.
      num_targets: targets per restart, >= 1; 1 for untargeted attacks.
      order: 'ascending' or 'bisection'.
    """

    num_eps: int
    num_restarts: int = 1
    num_targets: int = 1
    order: str = 'ascending'

    def check(self) -> None:
        """Raises ValueError for numbers < 1 or an unknown order."""
        if self.order not in ORDERS:
            did_you_mean(self.order, ORDERS, 'order of the eps grid')
        for field in ('num_eps', 'num_restarts', 'num_targets'):
            if getattr(self, field) < 1:  # no attack at all would pass for perfect robustness
                raise ValueError(f'{field} = {getattr(self, field)} must be at least 1')


def _choose(search: Search, low: int, high: int) -> int:
    return low + 1 if search.order == 'ascending' else (low + high) // 2


def first_items(search: Search, rows: Sequence[int], limits: Sequence[int]) -> list[Item]:
    """The first item of every row whose limit (the smallest position known to be broken) leaves one open."""
    return [Item(int(row), _choose(search, -1, int(limit)), low=-1, high=int(limit))
            for row, limit in zip(rows, limits, strict=True) if limit > 0]


def successor(search: Search, item: Item, *, fooled: bool) -> Item | None:
    """What follows an item; None once the row's smallest breaking radius is known."""
    if not fooled:
        if item.restart + 1 < search.num_restarts:
            return item._replace(restart=item.restart + 1)
        if item.rank < search.num_targets:
            return item._replace(restart=0, rank=item.rank + 1)
    low, high = (item.low, item.eps) if fooled else (item.eps, item.high)
    if high - low <= 1:
        return None
    return Item(item.row, _choose(search, low, high), low=low, high=high)


def every_item(search: Search, rows: Sequence[int]) -> list[Item]:
    """All runs on all rows, radius by radius: for losses and scores, which need every attack to its end."""
    return [Item(int(row), eps, restart, rank, high=search.num_eps) for eps in range(search.num_eps)
            for rank in range(1, search.num_targets + 1) for restart in range(search.num_restarts) for row in rows]
