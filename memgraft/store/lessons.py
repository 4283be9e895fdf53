"""Lessons as bytes: a commit's row changes in one safetensors file, its header and record as JSON beside it.

Legend: R rows of a lesson, V value width (the residual stream's).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memgraft.canonical import canonical_json
from memgraft.config import ANSWERS, MemoryConfig
from memgraft.errors import StoreError
from memgraft.store.manifest import MESSAGE_LIMIT, check_version, parse
from memgraft.store.record import check_record

# Torch is imported where it is used: `memgraft log` reads the history without it.
if TYPE_CHECKING:
    from torch import Tensor

    from memgraft.commits import Commit, Rows
    from memgraft.cues import Cues

CUES = "cues"  # how names of tensors start that are no table's
_HEADER_KEYS = {"format_version", "message", "recipe", "data_sha256"}


@dataclass(frozen=True)
class Overlap:
    """A later lesson that texts read with a reverted one, and that may have been learned on top of it."""

    commit: str
    message: str
    shared_slots: int | None  # over all tables; None where both have anchors, whose rows are their own
    l2: float  # L2 norm of what the revert takes away from those slots, or of all its rows at anchors

    @property
    def place(self) -> str:
        """Where both are read, for a message."""
        return place(self.shared_slots, self.l2)


@dataclass(frozen=True)
class RevertReport:
    """What a revert took away, and which later lessons were read together with it."""

    commit: str
    rows: int
    overlaps: tuple[Overlap, ...]  # active lessons only, in the order in which they were learned


class Content(NamedTuple):
    """What a lesson's file holds."""

    changes: Mapping[str, Rows]  # per value table
    cues: Cues | None


def encode(commit: Commit, memory: MemoryConfig, where: str) -> tuple[bytes, bytes, bytes]:
    """The bytes of a commit's changes, header and record; equal commits have equal bytes. StoreError when it does not fit."""
    import safetensors.torch

    problem = _problem(Content(commit.changes, commit.cues), memory)
    if problem:
        raise StoreError(f"{where}: the lesson does not fit the memory: {problem}; nothing was changed")
    if len(commit.message) > MESSAGE_LIMIT:
        raise StoreError(f"{where}: the message has {len(commit.message)} characters, at most {MESSAGE_LIMIT} fit; nothing was changed")
    try:
        header = header_text(commit).encode()
        record = canonical_json(dict(commit.record))
    except (TypeError, ValueError) as error:
        raise StoreError(f"{where}: the lesson's message, recipe or record is not plain JSON: {error}; nothing was changed") from error
    check_record(parse(record, where), where, "nothing was changed")
    # One metadata key only: the order of several differs from run to run, and so would the bytes.
    return safetensors.torch.save(tensors_of(commit), {"memgraft": header.decode()}), header + b"\n", record + b"\n"


def tensors_of(commit: Commit) -> dict[str, Tensor]:
    """Row changes and cues as the tensors of a lesson's file; values are bf16 where every one of them survives that."""
    import torch

    tensors: dict[str, Tensor] = {}
    half = fits_bfloat16(commit.changes)
    for table, rows in commit.changes.items():
        # Copies: the format has no tensors that share memory, and two tables may have the same slots.
        tensors[f"slots.{table}"] = rows.slots.detach().cpu().contiguous().clone()
        tensors[f"values.{table}"] = rows.values.detach().cpu().contiguous().to(torch.bfloat16 if half else torch.float32, copy=True)
    for name, tensor in (commit.cues.tensors() if commit.cues is not None else {}).items():
        tensors[f"{CUES}.{name}"] = tensor.detach().cpu().contiguous().clone()
    return tensors


def fits_bfloat16(changes: Mapping[str, Rows]) -> bool:
    """Whether all values are bf16 numbers, so that storing them as such loses no bit."""
    import torch

    return all(not bool((rows.values.detach().cpu().contiguous().view(torch.int32) & 0xFFFF).any()) for rows in changes.values())


def header_text(commit: Commit) -> str:
    """A lesson's header as canonical JSON, with the oldest format that can hold it. TypeError or ValueError when it is not plain JSON."""
    version = (
        4
        if commit.cues is not None and commit.cues.anchors is not None
        else 3
        if commit.cues is not None
        else 2
        if fits_bfloat16(commit.changes)
        else 1
    )
    return canonical_json({"format_version": version, **commit.header()}).decode()


def check_header_copy(copy: str | None, commit: Commit, where: str) -> None:
    """StoreError unless the header inside a lesson's file is the lesson's."""
    header = decode_header((copy or "").encode(), where)
    if {key: value for key, value in header.items() if key != "format_version"} != commit.header():
        raise _damaged(where, "the header inside is not the one beside it")


def decode(data: bytes, memory: MemoryConfig, where: str) -> Content:
    """What is in the bytes of a lesson's safetensors file. StoreError when it can't be this memory's."""
    tensors = load_tensors(data, where)
    cues = _cues({name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{CUES}.")}, where)
    content = Content(_changes(tensors, where), cues)
    problem = _problem(content, memory)
    if problem:
        raise _damaged(where, problem)
    return content


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
    import torch
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
                limit = 2**31 if table == ANSWERS else memory.slots  # the number of anchors is not known here
                problem = Rows(ids, torch.zeros(len(ids), 0)).problem(limit, 0)
            except (TypeError, ValueError) as error:
                problem = str(error)
        if problem:
            raise _damaged(str(path), problem)
    return slots


def read_cues(path: Path, memory: MemoryConfig) -> Cues | None:
    """The cues of a lesson's file, without reading its rows or checking its digest."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (a file, not a mapping)
                if name.startswith(f"{CUES}."):
                    tensors[name] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise _damaged(str(path), str(error)) from error
    cues = _cues(tensors, str(path))
    problem = _problem(Content({}, cues), memory)
    if problem:
        raise _damaged(str(path), problem)
    return cues


def read_header_copy(path: Path) -> str | None:
    """The header that travels inside a lesson's safetensors file, for a file that left its store."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("memgraft")
    except (OSError, SafetensorError) as error:
        raise _damaged(str(path), str(error)) from error


def read_together(one: Cues | None, other: Cues | None) -> bool:
    """Whether some text reads both of two lessons, as far as their cues tell."""
    return one is None or other is None or one.meets(other)


def still_open(cues: Cues | None, closed: Collection[int]) -> Cues | None:
    """A lesson's cues where these facts of it were superseded (`memgraft.superseding`)."""
    return cues.without(closed) if cues is not None and closed else cues


def place(shared_slots: int | None, l2: float) -> str:
    """Where two lessons are read together."""
    return "in the same questions" if shared_slots is None else f"at {shared_slots:,} slots, norm {l2:.3g}"


def overlap_of(commit: str, message: str, changes: Mapping[str, Rows], later: Mapping[str, Tensor]) -> Overlap | None:
    """What taking `changes` away takes from where a later lesson is read together with them; None where they share no slot.

    Anchors of two lessons have rows of their own, so there a token may be at anchors of both and no slot is shared.
    """
    import torch

    if len(later.get(ANSWERS, ())) and ANSWERS in changes:
        return Overlap(commit, message, None, float(changes[ANSWERS].values.double().norm()))
    shared, square = 0, 0.0
    for table, rows in changes.items():
        theirs = later.get(table)
        if theirs is not None and len(theirs):
            mask = theirs[torch.searchsorted(theirs, rows.slots).clamp(max=len(theirs) - 1)] == rows.slots
            shared += int(mask.sum())
            square += float(rows.values[mask].double().square().sum())
    return Overlap(commit, message, shared, square**0.5) if shared else None


def overlap_refusal(id: str, overlaps: Sequence[Overlap]) -> str:
    """Why a lesson is not reverted when later lessons that are read together with it are to be left whole."""
    first = overlaps[0]
    return (
        f"{len(overlaps)} later lesson{'s are' if len(overlaps) > 1 else ' is'} read together with {id[:12]}, such as {first.commit[:12]} "
        f"({first.place}); nothing was changed: choose with --overlap whether to keep or re-teach them"
    )


def sum_changes(lessons: Iterable[Mapping[str, Rows]], slots: Mapping[str, Tensor], width: int) -> dict[str, Rows]:
    """Per table, the fp32 sum of the lessons' changes in order, over the given slots; holds one lesson at a time."""
    import torch

    from memgraft.commits import Rows, add_rows

    totals = {table: Rows(ids, torch.zeros(len(ids), width)) for table, ids in slots.items()}
    for changes in lessons:
        for table, rows in changes.items():
            add_rows(totals[table], rows)
    return totals


def _changes(tensors: Mapping[str, Tensor], where: str) -> dict[str, Rows]:
    import torch

    from memgraft.commits import Rows

    tables = sorted({name.partition(".")[2] for name in tensors})
    expected = {f"{kind}.{table}" for table in tables for kind in ("slots", "values")}
    if set(tensors) != expected:
        raise _damaged(where, f"unexpected tensors, such as {sorted(expected.symmetric_difference(tensors))[0][:80]!r}")
    values = {table: tensors[f"values.{table}"] for table in tables}
    try:
        return {table: Rows(tensors[f"slots.{table}"], v.float() if v.dtype == torch.bfloat16 else v) for table, v in values.items()}
    except ValueError as error:
        raise _damaged(where, str(error)) from error


def _cues(tensors: Mapping[str, Tensor], where: str) -> Cues | None:
    from memgraft.cues import Cues

    if not tensors:
        return None
    try:
        return Cues.from_tensors({name.removeprefix(f"{CUES}."): tensor for name, tensor in tensors.items()})
    except ValueError as error:
        raise _damaged(where, f"unexpected tensors, such as {f'{CUES}.{error}'[:80]!r}") from error


def _problem(content: Content, memory: MemoryConfig) -> str | None:
    anchors = None
    if content.cues is not None:
        problem = content.cues.problem(memory.query_dim) or (None if len(content.cues) else "there are none")
        anchors = content.cues.anchors
        if anchors is not None and memory.answer_layer is None:
            problem = problem or "they have anchors, and the memory has no answer layer"
        if problem:
            return f"cues: {problem}"
    for table, rows in content.changes.items():
        if (table == ANSWERS) != (anchors is not None):
            problem = "no such table, the lesson has anchors" if anchors is not None else "no such table, the lesson has no anchors"
        else:
            slots = memory.slots if anchors is None else len(anchors)
            problem = _unknown_table(table, memory) or rows.problem(slots, memory.hidden_size)
        if problem:
            return f"table {table!r}: {problem}"
    return None


def _unknown_table(table: str, memory: MemoryConfig) -> str | None:
    tables = memory.tables if memory.answer_layer is None else (*memory.tables, ANSWERS)
    return None if table in tables else f"no such table, the memory has {', '.join(tables)}"


def _damaged(where: str, what: str) -> StoreError:
    return StoreError(f"{where}: {' '.join(what.split())}; restore the file from a copy of the store")
