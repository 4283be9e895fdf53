"""Merging: what another store of the same base and keys learned and took back, added to this one.

Each lesson's entries alternate between learned and reverted, so their number is a clock: of two stores, the one with more
entries of a lesson knows the later of its states. A merge gives every lesson the later state. That is the maximum of two
numbers a lesson: commutative, associative, and the same when repeated.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memgraft.errors import StoreError
from memgraft.store import lessons
from memgraft.store import manifest as layout
from memgraft.store.draft import Draft, now
from memgraft.store.manifest import HistoryEntry, Manifest

if TYPE_CHECKING:
    from memgraft.store.store import MemoryStore


@dataclass(frozen=True)
class Conflict:
    """A lesson whose slots hold something else after the merge than where it was learned."""

    lesson: str  # the one that `re-teach` would teach again
    message: str
    other: str  # whose part is added to the shared slots, or gone from them
    other_message: str
    shared_slots: int  # over all tables
    l2: float  # L2 norm of the other's part of those slots


@dataclass(frozen=True)
class MergeReport:
    """What a merge brought."""

    learned: tuple[str, ...]  # lessons that are active now and were not, in order
    reverted: tuple[str, ...]  # lessons that were active here and taken back there
    conflicts: tuple[Conflict, ...]


def missing_entries(ours: Manifest, theirs: Manifest) -> list[HistoryEntry]:
    """The entries of another history that come after those known here, lesson by lesson, in their order."""
    known = Counter(entry.commit for entry in ours.history if entry.op != "gc")
    seen = Counter[str]()
    missing = []
    for entry in theirs.history:
        if entry.op != "gc":
            seen[entry.commit] += 1
            if seen[entry.commit] > known[entry.commit]:
                missing.append(entry)
    return missing


def take_over(draft: Draft, here: MemoryStore, other: MemoryStore) -> MergeReport:
    """Adds the missing entries of another store to a draft. Conflicts are in the report; the draft has them summed.

    Lessons that come are checked as a whole before any of them is taken.
    """
    ours, theirs = draft.manifest, other.manifest
    times = Counter(entry.commit for entry in ours.history if entry.op == "learn")
    removed = dict[str, HistoryEntry]()  # lessons whose files neither store has any more
    for entry in missing_entries(ours, theirs):
        contents = dict[str, Callable[[], bytes]]()
        if entry.op == "learn":
            times[entry.commit] += 1
            names = [layout.changes_name(entry.commit), layout.header_name(entry.commit)]
            names += [layout.record_name(entry.commit, times[entry.commit])]
            names += [f"{layout.DATA}/{entry.data}"] if entry.data else []
            if all(name in theirs.files or name in ours.files for name in names):
                contents = {name: functools.partial(other.read_member, name) for name in names if name in theirs.files}
            else:
                removed[entry.commit] = entry
        draft.take(entry, contents)
    for entry in removed.values():
        draft.take(entry.model_copy(update={"op": "gc", "when": now(), "data": None}), {})
    merged = Manifest.model_construct(files={}, history=draft.history, tags={}).active()
    active, foreign = ours.active(), theirs.active()
    here_before, there, after = set(active), set(foreign), set(merged)
    learned = tuple(id for id in merged if id not in here_before)
    reverted = tuple(id for id in active if id not in after)
    for id in learned:
        other.commit(id)
    only_here = [id for id in active if id in after and id not in there]
    gone_there = [id for id in foreign if id not in after]
    messages = {entry.commit: entry.message for entry in (*ours.history, *theirs.history)}
    conflicts = (
        *_shared(other, learned, here, only_here, messages),
        *_shared(other, learned, other, gone_there, messages),
        *_shared(here, only_here, here, reverted, messages),
    )
    return MergeReport(learned, reverted, conflicts)


def _shared(
    store: MemoryStore, ids: Sequence[str], others: MemoryStore, other_ids: Sequence[str], messages: Mapping[str, str]
) -> Iterator[Conflict]:
    if not ids:
        return
    slots = {id: store.slots(id) for id in ids}
    for other in other_ids:
        changes = others.changes(other)
        for id in ids:
            overlap = lessons.overlap_of(id, messages[id], changes, slots[id])
            if overlap is not None:
                yield Conflict(id, messages[id], other, messages[other], overlap.shared_slots, overlap.l2)


def refuse(conflicts: tuple[Conflict, ...], where: str, way_out: str) -> None:
    """StoreError that names the first conflict and their number; nothing where there are none."""
    if conflicts:
        first, lessons_ = conflicts[0], len({conflict.lesson for conflict in conflicts})
        raise StoreError(
            f"{where}: {lessons_} lesson{'s' if lessons_ > 1 else ''} would share slots with others, such as {first.lesson[:12]} "
            f"with {first.other[:12]} ({first.shared_slots:,} slots, norm {first.l2:.3g}); nothing was changed: {way_out}"
        )
