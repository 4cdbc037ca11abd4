"""What has been found so far over a grid of radii, and what it amounts to.

Contents: `Findings`, `stronger`.

Example:

    findings = Findings(num_eps=4, num_examples=624)
    findings.enter(ended)                                   # as items end, in any order
    result = findings.at(0, start=clean.result)             # the first radius
    result = findings.at(1, start=result)                   # the second: what fell stays fallen
"""
from collections.abc import Mapping

import numpy as np

from medrobust_jax.core.types import AttackResult
from medrobust_jax.evaluate.pool import Ended
from medrobust_jax.evaluate.queue import Item


class Findings:
    """The strongest image of every example at every radius at which it was attacked.

    Args:
      num_eps: radii in the ascending grid, E.
      num_examples: N.

    Attributes:
      attacked: `[E, N]` bool, whether the example was attacked at this radius.
      looks: `[E]`, the looks that were needed at each radius.
    """

    def __init__(self, num_eps: int, num_examples: int):
        self.attacked = np.zeros((num_eps, num_examples), bool)
        self.looks = np.zeros(num_eps, np.int64)
        self._best: list[dict[int, Ended]] = [{} for _ in range(num_eps)]

    def enter(self, ended: Ended) -> None:
        """Fooled beats unfooled, then the higher loss, then the lower target and restart, in any order of ends."""
        eps, row = ended.item.eps, ended.item.row
        self.looks[eps] += ended.looks
        self.attacked[eps, row] = True
        known = self._best[eps].get(row)
        if known is None or _strength(ended) > _strength(known):
            self._best[eps][row] = ended

    def at(self, eps: int, start: AttackResult) -> AttackResult:
        """The stronger, per example, of `start` and what was found at the radius at position `eps`."""
        return self._merged(start, self._best[eps])

    def within(self, radius: float, start: AttackResult, clean: np.ndarray, *, norm: str) -> AttackResult:
        """As `at`, for a minimum-norm attack: what it found counts where it is within `radius` of `clean`."""
        order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
        return self._merged(start, {
            row: ended for row, ended in self._best[0].items() if not ended.acceptable
            and np.linalg.norm((ended.image - clean[row]).ravel(), order) <= radius})

    def _merged(self, start: AttackResult, found: Mapping[int, Ended]) -> AttackResult:
        columns = [np.array(field) for field in start]
        for row, ended in found.items():
            for column, value in zip(columns, ended[1:5], strict=True):
                column[row] = value
        rows = np.zeros(len(start.acceptable), bool)
        rows[list(found)] = True
        return stronger(start, AttackResult(*columns), rows)

    def snapshot(self) -> dict[str, np.ndarray]:
        """All of it as arrays; `restore` goes back to it."""
        found = [ended for rows in self._best for ended in rows.values()]
        arrays = {'attacked': self.attacked, 'looks': self.looks}
        if found:
            arrays |= {'items': np.asarray([ended.item for ended in found])}
            arrays |= {f'found/{field}': np.asarray([getattr(ended, field) for ended in found])
                       for field in Ended._fields[1:]}
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes back to a `snapshot` of the same grid and examples."""
        self._best = [{} for _ in self._best]
        if 'items' in arrays:
            columns = [arrays[f'found/{field}'] for field in Ended._fields[1:]]
            for row, *rest in zip(arrays['items'], *columns, strict=True):
                self.enter(Ended(Item(*map(int, row)), *rest))
        self.attacked, self.looks = np.array(arrays['attacked']), np.array(arrays['looks'])


def _strength(ended: Ended) -> tuple:
    return not ended.acceptable, ended.loss, -ended.item.rank, -ended.item.restart


def stronger(first: AttackResult, second: AttackResult, rows: np.ndarray | bool = True) -> AttackResult:
    """Per example of `rows` the stronger of two results: fooled first, then the higher loss, then `first`."""
    was, now = first.acceptable, second.acceptable
    take = np.where(was == now, second.loss > first.loss, was) & rows
    return AttackResult(*(np.where(take.reshape(-1, *[1] * (a.ndim - 1)), b, a)
                          for a, b in zip(first, second, strict=True)))
