"""Row changes and commits: what a lesson did to the memory, independent of where it is kept.

The state of a memory is the fp32 sum of its commits' row changes, in order. A commit's id is the SHA-256 of its content
(changes, message, recipe, data hash), so equal lessons have equal ids; measurements and timings lie beside it in a
`record`, outside the hash.

Shape suffixes: R rows, V value width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from memgraft.canonical import canonical_json
from memgraft.cues import Cues

__all__ = ["Commit", "DataFile", "Rows", "add_rows", "canonical_json", "sum_rows", "union_slots"]


@dataclass(frozen=True, eq=False)
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

    def __eq__(self, other: object) -> bool:
        return self.equal(other) if isinstance(other, Rows) else NotImplemented

    def problem(self, slots: int, width: int) -> str | None:
        """Why these can't be rows of a table with `slots` slots of `width` values; None when they can."""
        if self.width != width:
            return f"values are {self.width} wide, expected {width}"
        if len(self) and bool((self.slots[1:] <= self.slots[:-1]).any()):
            return "slots must be strictly increasing"
        if len(self) and not (0 <= int(self.slots[0]) and int(self.slots[-1]) < slots):
            return f"slots must lie in [0, {slots}), got {int(self.slots[0])} to {int(self.slots[-1])}"
        if not bool(torch.isfinite(self.values).all()):
            row = int((~torch.isfinite(self.values)).any(dim=1).nonzero()[0])
            return f"the values of slot {int(self.slots[row])} are not finite"
        return None


def union_slots(parts: Iterable[Tensor]) -> Tensor:
    """The sorted unique slot ids (U,) int64 of many (R,) parts, holding few parts at a time."""
    union = torch.zeros(0, dtype=torch.int64)
    pending: list[Tensor] = []
    waiting = 0
    for part in parts:
        pending.append(part)
        waiting += len(part)
        if waiting > max(_MERGE_AT, len(union)):
            union, pending, waiting = torch.unique(torch.cat([union, *pending])), [], 0
    merged: Tensor = torch.unique(torch.cat([union, *pending]))
    return merged


_MERGE_AT = 1 << 20  # slot ids gathered before they are merged: 8 MiB, whatever the number of lessons


def add_rows(total: Rows, change: Rows) -> None:
    """Adds `change` to the values of `total` in place. ValueError when `total` lacks one of its slots."""
    if not len(change):
        return
    positions = torch.searchsorted(total.slots, change.slots)
    if not len(total) or not torch.equal(total.slots[positions.clamp(max=len(total) - 1)], change.slots):
        raise ValueError("the change holds slots that the total lacks")
    total.values.index_add_(0, positions, change.values)


def sum_rows(changes: Iterable[Rows], width: int) -> Rows:
    """The fp32 sum of row changes, added in the given order; slots in the union of theirs.

    Starts from +0.0, so that a lone -0.0 becomes +0.0 whatever came before it.
    """
    parts = list(changes)
    slots = union_slots(part.slots for part in parts)
    total = Rows(slots, torch.zeros(len(slots), width))
    for part in parts:
        add_rows(total, part)
    return total


@dataclass(frozen=True)
class DataFile:
    """A data file that is kept with the lesson it taught, so that the lesson can be taught again."""

    kind: Literal["jsonl", "txt"]
    content: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> DataFile:
        """OSError where there is none."""
        return cls("txt" if path.suffix.lower() == ".txt" else "jsonl", path.read_bytes())


@dataclass(frozen=True)
class Commit:
    """One lesson: the row changes, per value table, that teaching a data set made."""

    changes: Mapping[str, Rows]  # table name ("0", "1", …) → what was added to its rows
    message: str
    recipe: Mapping[str, Any]  # JSON: every setting that shaped the changes
    data_sha256: str
    record: Mapping[str, Any] = field(default_factory=dict, compare=False)  # JSON: measurements, outside the id
    data: DataFile | None = field(default=None, compare=False)  # what was taught, where it is to be kept
    cues: Cues | None = None  # after which it is read; None: every text reads it

    def header(self) -> dict[str, Any]:
        """What the id covers, beside the changes themselves."""
        return {"message": self.message, "recipe": dict(self.recipe), "data_sha256": self.data_sha256}

    @property
    def id(self) -> str:
        """SHA-256 (hex) of header, changes and cues."""
        digest = hashlib.sha256(canonical_json(self.header()))
        for name in sorted(self.changes):
            rows = self.changes[name]
            digest.update(f"{name}:{len(rows)}:{rows.width};".encode())
            digest.update(_little_endian(rows.slots))
            digest.update(_little_endian(rows.values))
        for name, tensor in (self.cues.tensors() if self.cues is not None else {}).items():
            digest.update(f"cues.{name}:{'x'.join(map(str, tensor.shape))};".encode())
            digest.update(_little_endian(tensor))
        return digest.hexdigest()

    @property
    def rows(self) -> int:
        """Rows changed, over all tables."""
        return sum(len(rows) for rows in self.changes.values())


def _little_endian(tensor: Tensor) -> memoryview:
    """The tensor's numbers as the bytes of a safetensors file, on every machine."""
    array = tensor.detach().cpu().contiguous().numpy().reshape(-1)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).view(numpy.uint8).data
