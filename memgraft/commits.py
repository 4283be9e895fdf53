"""Row changes and commits: what a lesson did to the memory, independent of where it is kept.

The state of a memory is the fp32 sum of its commits' row changes, in order. A commit's id is the SHA-256 of its content
(changes, message, recipe, data hash), so equal lessons have equal ids; measurements and timings lie beside it in a
`record`, outside the hash.

Shape suffixes: R rows, V value width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows of one value table that differ from zero: sorted unique slot ids and their fp32 values."""

    slots: Tensor  # (R,) int64, strictly increasing
    values: Tensor  # (R, V) fp32

    def __post_init__(self) -> None:
        if self.slots.dtype != torch.int64 or self.slots.dim() != 1:
            raise ValueError(f"slots must be int64 of shape (R,), got {self.slots.dtype} {tuple(self.slots.shape)}")
        if self.values.dtype != torch.float32 or self.values.dim() != 2 or len(self.values) != len(self.slots):
            raise ValueError(f"values must be fp32 of shape (R, V), got {self.values.dtype} {tuple(self.values.shape)}")

    @classmethod
    def empty(cls, width: int) -> Rows:
        return cls(torch.zeros(0, dtype=torch.int64), torch.zeros(0, width))

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def equal(self, other: Rows) -> bool:
        """Bit for bit the same slots and values."""
        return torch.equal(self.slots, other.slots) and torch.equal(
            self.values.contiguous().view(torch.int32), other.values.contiguous().view(torch.int32)
        )


def sum_rows(changes: Iterable[Rows], width: int) -> Rows:
    """The fp32 sum of row changes, added in the given order; slots in the union of theirs."""
    parts = list(changes)
    if not parts:
        return Rows.empty(width)
    slots = torch.unique(torch.cat([part.slots for part in parts]))
    values = torch.zeros(len(slots), width)
    for part in parts:
        values.index_add_(0, torch.searchsorted(slots, part.slots), part.values)
    return Rows(slots, values)


@dataclass(frozen=True)
class Commit:
    """One lesson: the row changes, per value table, that teaching a data set made."""

    changes: Mapping[str, Rows]  # table name ("0", "1", …) → what was added to its rows
    message: str
    recipe: Mapping[str, Any]  # JSON: every setting that shaped the changes
    data_sha256: str
    record: Mapping[str, Any] = field(default_factory=dict, compare=False)  # JSON: measurements, outside the id

    def header(self) -> dict[str, Any]:
        """What the id covers, beside the changes themselves."""
        return {"message": self.message, "recipe": dict(self.recipe), "data_sha256": self.data_sha256}

    @property
    def id(self) -> str:
        """SHA-256 (hex) of header and changes."""
        digest = hashlib.sha256(canonical_json(self.header()))
        for name in sorted(self.changes):
            rows = self.changes[name]
            digest.update(f"{name}:{len(rows)}:{rows.width};".encode())
            digest.update(rows.slots.contiguous().numpy().tobytes())
            digest.update(rows.values.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def rows(self) -> int:
        """Rows changed, over all tables."""
        return sum(len(rows) for rows in self.changes.values())


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values have equal bytes. Refuses NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
