"""What a lesson keeps of the rows that it changed: the largest changes, rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from memgraft.commits import Rows
from memgraft.memory import Tables


def rounded(rows: Rows, dtype: Literal["float32", "bfloat16"]) -> Rows:
    """Rows rounded to a dtype, in fp32; those that become zero are left out."""
    if dtype == "float32":
        return rows
    values = rows.values.bfloat16().float()
    changed = (values != 0).any(-1)
    return Rows(rows.slots[changed], values[changed])


def pruned_to(tables: Tables, before: Mapping[str, Rows], target: int, steps: int) -> int:
    """How many rows to keep now, where `steps` steps by one factor, this one included, lead from those that changed to `target`."""
    changed = sum(len(difference(rows, before[name])) for name, rows in tables.rows().items())
    return target if changed <= target else round(changed * (target / changed) ** (1 / steps))


def keep_largest(tables: Tables, before: Mapping[str, Rows], count: int) -> None:
    """Take back all but the `count` rows, over all tables, that changed most since `before`; ties by table, then slot.

    Rows taken back hold the bits that they held before. Most of what a lesson writes are small changes of many rows, which
    teach little and are read by others (docs/concepts.md).
    """
    changes = {name: difference(rows, before[name]) for name, rows in tables.rows().items()}
    norms = torch.cat([change.values.norm(dim=-1) for change in changes.values()])
    chosen = torch.zeros(len(norms), dtype=torch.bool)
    chosen[norms.sort(descending=True, stable=True).indices[:count]] = True
    rows = {}
    for (name, change), mine in zip(changes.items(), chosen.split([len(change) for change in changes.values()]), strict=True):
        kept, after = change.slots[mine], tables.table(name).rows
        new = torch.isin(after.slots, kept)
        old = ~torch.isin(before[name].slots, kept)
        slots, order = torch.cat([after.slots[new], before[name].slots[old]]).sort()
        rows[name] = Rows(slots, torch.cat([after.values[new], before[name].values[old]])[order])
    tables.assign(rows)


def difference(after: Rows, before: Rows) -> Rows:
    """What was added to the rows `before` to make `after`; rows that did not change are left out."""
    values = after.values.clone()
    at = torch.searchsorted(after.slots, before.slots)
    values[at] -= before.values
    changed = (values != 0).any(-1)
    return Rows(after.slots[changed], values[changed])
