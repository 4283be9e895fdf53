"""Lessons as bytes: a commit's row changes in one safetensors file, its header and record as JSON beside it.

Legend: R rows of a lesson, V value width (the residual stream's).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memgraft.canonical import canonical_json
from memgraft.config import MemoryConfig
from memgraft.errors import StoreError
from memgraft.store.manifest import check_version, parse
from memgraft.store.spec import FORMAT_VERSION

# Torch is imported where it is used: `memgraft log` reads the history without it.
if TYPE_CHECKING:
    from torch import Tensor

    from memgraft.commits import Commit, Rows

MESSAGE_LIMIT = 4_000  # characters; the history repeats every message
_HEADER_KEYS = {"format_version", "message", "recipe", "data_sha256"}


@dataclass(frozen=True)
class Overlap:
    """A later lesson that wrote to slots of a reverted one, and may have been learned on top of what it wrote."""

    commit: str
    message: str
    shared_slots: int  # over all tables
    l2: float  # L2 norm of what the revert takes away from those slots


@dataclass(frozen=True)
class RevertReport:
    """What a revert took away, and which later lessons shared slots with it."""

    commit: str
    rows: int
    overlaps: tuple[Overlap, ...]  # active lessons only, in the order in which they were learned


def encode(commit: Commit, memory: MemoryConfig, where: str) -> tuple[bytes, bytes, bytes]:
    """The bytes of a commit's changes, header and record; equal commits have equal bytes. StoreError when it does not fit."""
    import safetensors.torch

    problem = _problem(commit.changes, memory)
    if problem:
        raise StoreError(f"{where}: the lesson does not fit the memory: {problem}; nothing was changed")
    if len(commit.message) > MESSAGE_LIMIT:
        raise StoreError(f"{where}: the message has {len(commit.message)} characters, at most {MESSAGE_LIMIT} fit; nothing was changed")
    try:
        header = header_text(commit).encode()
        record = canonical_json(dict(commit.record))
    except (TypeError, ValueError) as error:
        raise StoreError(f"{where}: the lesson's message, recipe or record is not plain JSON: {error}; nothing was changed") from error
    tensors: dict[str, Tensor] = {}
    for table, rows in commit.changes.items():
        tensors[f"slots.{table}"] = rows.slots.detach().cpu().contiguous()
        tensors[f"values.{table}"] = rows.values.detach().cpu().contiguous()
    # One metadata key only: the order of several differs from run to run, and so would the bytes.
    return safetensors.torch.save(tensors, {"memgraft": header.decode()}), header + b"\n", record + b"\n"


def header_text(commit: Commit) -> str:
    """A lesson's header as canonical JSON. TypeError or ValueError when it is not plain JSON."""
    return canonical_json({"format_version": FORMAT_VERSION, **commit.header()}).decode()


def decode(data: bytes, memory: MemoryConfig, where: str) -> dict[str, Rows]:
    """The row changes per table in the bytes of a lesson's safetensors file. StoreError when they can't be this memory's."""
    return _changes(load_tensors(data, where), memory, where)


def load_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file, or a StoreError."""
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise _damaged(where, str(error)) from error


def decode_header(data: bytes, where: str) -> dict[str, Any]:
    """A lesson's header: format_version, message, recipe, data_sha256."""
    header = parse(data, where)
    check_version(header, where)
    if set(header) != _HEADER_KEYS:
        raise _damaged(where, f"expected the keys {sorted(_HEADER_KEYS)}, got {sorted(header)[:8]}")
    if not (isinstance(header["message"], str) and isinstance(header["recipe"], dict) and isinstance(header["data_sha256"], str)):
        raise _damaged(where, "message and data_sha256 must be text, recipe an object")
    return header


def read_slots(path: Path, memory: MemoryConfig) -> dict[str, Tensor]:
    """The slots (R,) int64 per table of a lesson's file, without reading its values or checking its digest."""
    from safetensors import SafetensorError, safe_open

    from memgraft.commits import Rows

    slots: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (a file, not a mapping)
                kind, _, table = name.partition(".")
                if kind == "slots":
                    slots[table] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise _damaged(str(path), str(error)) from error
    for table, ids in slots.items():
        problem = _unknown_table(table, memory)
        if problem is None:
            try:
                problem = Rows(ids, ids.new_zeros((len(ids), 0)).float()).problem(memory.slots, 0)
            except (TypeError, ValueError) as error:
                problem = str(error)
        if problem:
            raise _damaged(str(path), problem)
    return slots


def read_header_copy(path: Path) -> str | None:
    """The header that travels inside a lesson's safetensors file, for a file that left its store."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("memgraft")
    except (OSError, SafetensorError) as error:
        raise _damaged(str(path), str(error)) from error


def overlap_of(commit: str, message: str, changes: Mapping[str, Rows], later: Mapping[str, Tensor]) -> Overlap | None:
    """What taking `changes` away takes from the slots of a later lesson; None when they share no slot."""
    import torch

    shared, square = 0, 0.0
    for table, rows in changes.items():
        theirs = later.get(table)
        if theirs is not None and len(theirs):
            mask = theirs[torch.searchsorted(theirs, rows.slots).clamp(max=len(theirs) - 1)] == rows.slots
            shared += int(mask.sum())
            square += float(rows.values[mask].double().square().sum())
    return Overlap(commit, message, shared, square**0.5) if shared else None


def sum_changes(lessons: Iterable[Mapping[str, Rows]], slots: Mapping[str, Tensor], width: int) -> dict[str, Rows]:
    """Per table, the fp32 sum of the lessons' changes in order, over the given slots; holds one lesson at a time."""
    import torch

    from memgraft.commits import Rows, add_rows

    totals = {table: Rows(ids, torch.zeros(len(ids), width)) for table, ids in slots.items()}
    for changes in lessons:
        for table, rows in changes.items():
            add_rows(totals[table], rows)
    return totals


def _changes(tensors: Mapping[str, Tensor], memory: MemoryConfig, where: str) -> dict[str, Rows]:
    from memgraft.commits import Rows

    tables = sorted({name.partition(".")[2] for name in tensors})
    expected = {f"{kind}.{table}" for table in tables for kind in ("slots", "values")}
    if set(tensors) != expected:
        raise _damaged(where, f"unexpected tensors, such as {sorted(expected.symmetric_difference(tensors))[0][:80]!r}")
    try:
        changes = {table: Rows(tensors[f"slots.{table}"], tensors[f"values.{table}"]) for table in tables}
    except ValueError as error:
        raise _damaged(where, str(error)) from error
    problem = _problem(changes, memory)
    if problem:
        raise _damaged(where, problem)
    return changes


def _problem(changes: Mapping[str, Rows], memory: MemoryConfig) -> str | None:
    for table, rows in changes.items():
        problem = _unknown_table(table, memory) or rows.problem(memory.slots, memory.hidden_size)
        if problem:
            return f"table {table!r}: {problem}"
    return None


def _unknown_table(table: str, memory: MemoryConfig) -> str | None:
    return None if table in memory.tables else f"no such table, the memory has {', '.join(memory.tables)}"


def _damaged(where: str, what: str) -> StoreError:
    return StoreError(f"{where}: {' '.join(what.split())}; restore the file from a copy of the store")
