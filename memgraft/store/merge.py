"""Merging: what another store of the same base and keys learned and took back, added to this one.

Each lesson's entries alternate between learned and reverted, so their number is a clock: of two stores, the one with more
entries of a lesson knows the later of its states. A merge gives every lesson the later state. That is the maximum of two
numbers a lesson: commutative, associative, and the same when repeated.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memgraft.errors import StoreError
from memgraft.store import lessons
from memgraft.store.draft import Draft
from memgraft.store.manifest import DATA, MANIFEST, HistoryEntry, Manifest, changes_name
from memgraft.superseding import closed_facts

if TYPE_CHECKING:
    from memgraft.store.store import MemoryStore


@dataclass(frozen=True)
class Conflict:
    """A lesson where something else is read after the merge than where it was learned."""

    lesson: str  # the one that `re-teach` would teach again
    message: str
    other: str  # whose part is added there, or gone
    other_message: str
    shared_slots: int | None  # over all tables; None where both have anchors, whose rows are their own
    l2: float  # L2 norm of the other's part of those slots, or of all its rows at anchors

    @property
    def place(self) -> str:
        """Where both are read, for a message."""
        return lessons.place(self.shared_slots, self.l2)


@dataclass(frozen=True)
class MergeReport:
    """What a merge brought."""

    learned: tuple[str, ...]  # lessons that are active now and were not, in order
    reverted: tuple[str, ...]  # lessons that were active here and taken back there
    conflicts: tuple[Conflict, ...]


def missing_entries(ours: Manifest, theirs: Manifest) -> list[HistoryEntry]:
    """The entries of another history that come after those known here, lesson by lesson, in their order.

    What was removed there stays here, unless it was learned there as well and its files are not to be had.
    """
    known = Counter(entry.commit for entry in ours.history if entry.op != "gc")
    seen = Counter[str]()
    learned = set[str]()
    missing = []
    for entry in theirs.history:
        if entry.op == "gc":
            new = entry.commit in learned
        else:
            seen[entry.commit] += 1
            new = seen[entry.commit] > known[entry.commit]
            learned.update([entry.commit] if new and entry.op == "learn" else [])
        if new:
            missing.append(entry)
    return missing


def take_over(draft: Draft, here: MemoryStore, other: MemoryStore) -> MergeReport:
    """Adds the missing entries of another store to a draft. Conflicts are in the report; the draft has them summed.

    Lessons that come are checked as a whole before any of them is taken, those that were taken back as well: they may be learned again.
    """
    ours, theirs = draft.manifest, other.manifest
    for entry in missing_entries(ours, theirs):
        draft.take(entry)
    after = Manifest.model_construct(files={}, history=draft.history, tags={})
    expected = after.expected_files()
    _check_tags(ours, expected, f"{other.path}: can't be merged into {here.path}")
    for name in sorted(expected.difference(ours.files)):
        read = other.read_data if name.startswith(DATA) else other.read_member
        draft.change.files[name] = functools.partial(read, name)
    merged = after.active()
    active, foreign = ours.active(), theirs.active()
    here_before, there, then = set(active), set(foreign), set(merged)
    learned = tuple(id for id in merged if id not in here_before)
    reverted = tuple(id for id in active if id not in then)
    _check_entries(draft.change.entries, ours, other)
    only_here = [id for id in active if id in then and id not in there]
    gone_there = [id for id in foreign if id not in then]
    messages = {entry.commit: entry.message for entry in (*ours.history, *theirs.history)}
    records = {id: (here if changes_name(id) in ours.files else other).readable_record(id) for id in merged}
    shared = functools.partial(_shared, messages=messages, closed=closed_facts(records))
    conflicts = (
        *shared(other, learned, here, only_here),
        *shared(other, learned, other, gone_there),
        *shared(here, only_here, here, reverted),
    )
    return MergeReport(learned, reverted, conflicts)


def _check_entries(taken: Sequence[HistoryEntry], ours: Manifest, other: MemoryStore) -> None:
    """StoreError where a lesson that comes can't be read as a whole, or an entry that is taken does not repeat its message and rows."""
    own = {entry.commit: (entry.message, entry.rows) for entry in ours.history}
    for id in dict.fromkeys(entry.commit for entry in taken if entry.op == "learn"):
        if changes_name(id) in other.manifest.files:
            commit = other.commit(id)
            own[id] = commit.message, commit.rows
    for entry in taken:
        if (entry.message, entry.rows) != own.get(entry.commit, (entry.message, entry.rows)):  # what was removed there is not known
            raise StoreError(
                f"{other.path / MANIFEST}: the history's message or rows of {entry.commit[:12]} are not the lesson's own; "
                f"nothing was merged: restore the file from a copy of the store"
            )


def _check_tags(ours: Manifest, expected: Collection[str], where: str) -> None:
    """StoreError where a tag needs a lesson whose files are not among those expected."""
    for tag, position in ours.tags.items():
        for id in ours.active(position):
            if changes_name(id) not in expected:
                raise StoreError(
                    f"{where}: it removed the lesson {id[:12]}, which the tag {tag!r} needs; nothing was changed: "
                    f"remove the tag first, with `memgraft tag --delete`"
                )


def _shared(
    store: MemoryStore,
    ids: Sequence[str],
    others: MemoryStore,
    other_ids: Sequence[str],
    *,
    messages: Mapping[str, str],
    closed: Mapping[str, frozenset[int]],
) -> Iterator[Conflict]:
    if not ids:
        return
    slots, cues = {id: store.slots(id) for id in ids}, {id: lessons.still_open(store.cues(id), closed[id]) for id in ids}
    for other in other_ids:
        content = others.content(other)
        theirs = lessons.still_open(content.cues, closed.get(other, frozenset()))
        for id in ids:
            if not lessons.read_together(theirs, cues[id]):
                continue
            overlap = lessons.overlap_of(id, messages[id], content.changes, slots[id])
            if overlap is not None:
                yield Conflict(id, messages[id], other, messages[other], overlap.shared_slots, overlap.l2)


def refuse(conflicts: tuple[Conflict, ...], where: str, way_out: str) -> None:
    """StoreError that names the first conflict and their number; nothing where there are none."""
    if conflicts:
        first, lessons_ = conflicts[0], len({conflict.lesson for conflict in conflicts})
        raise StoreError(
            f"{where}: {lessons_} lesson{'s' if lessons_ > 1 else ''} would be read together with others, such as {first.lesson[:12]} "
            f"with {first.other[:12]} ({first.place}); nothing was changed: {way_out}"
        )
