"""What lies between two points of a store's history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memgraft.commits import Rows
    from memgraft.store.reading import StoreReader


@dataclass(frozen=True)
class TableDiff:
    """How the rows of one value table differ."""

    rows: int  # whose values differ
    l2: float  # L2 norm of the difference


@dataclass(frozen=True)
class Diff:
    """From one point of the history to another."""

    learned: tuple[str, ...]  # lessons active at the second point only, in order
    reverted: tuple[str, ...]  # at the first only
    reordered: bool  # the lessons active at both are summed in another order, which can change last bits
    tables: dict[str, TableDiff]


def compare_points(store: StoreReader, a: str, b: str) -> Diff:
    """The difference of two points, which are given as to `MemoryStore.state`."""
    from memgraft.commits import Rows

    before, after = (store.manifest.active(store.manifest.position(point)) for point in (a, b))
    shared = set(before) & set(after)
    rows_before, rows_after = store.state(a), store.state(b)
    alone: dict[str, list[Rows]] = {}  # of lessons that are read by themselves
    for id in (*before, *after):
        if id not in shared and store.cues(id) is not None:
            for name, rows in store.changes(id).items():
                alone.setdefault(name, []).append(rows)
    names, none = dict.fromkeys((*store.spec.memory.tables, *alone)), Rows.empty(store.spec.memory.hidden_size)
    return Diff(
        learned=tuple(id for id in after if id not in shared),
        reverted=tuple(id for id in before if id not in shared),
        reordered=[id for id in before if id in shared] != [id for id in after if id in shared],
        tables={name: _table_diff(rows_before.get(name, none), rows_after.get(name, none), alone.get(name, [])) for name in names},
    )


def _table_diff(before: Rows, after: Rows, alone: Sequence[Rows]) -> TableDiff:
    import torch

    slots = torch.cat([before.slots, after.slots]).unique()
    difference = torch.zeros(len(slots), before.width, dtype=torch.float64)
    difference[torch.searchsorted(slots, after.slots)] += after.values
    difference[torch.searchsorted(slots, before.slots)] -= before.values
    squares = sum(float(rows.values.double().square().sum()) for rows in alone)
    return TableDiff(int((difference != 0).any(-1).sum()) + sum(map(len, alone)), (float(difference.norm()) ** 2 + squares) ** 0.5)
