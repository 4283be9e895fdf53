"""The lessons of a model: those in its store, and those that were not saved yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from memgraft.commits import Commit, DataFile, Rows, sum_rows
from memgraft.cues import Cues
from memgraft.errors import StoreError
from memgraft.store import MemoryStore, Overlap, RevertReport
from memgraft.store.lessons import overlap_of, read_together, still_open
from memgraft.superseding import FIELDS, chains_of, closed_facts, closing, facts_taught


class History:
    """Learned and reverted lessons, in order. Nothing reaches the store before `save`."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store
        self._pending: list[tuple[Literal["learn", "revert"], Commit]] = []
        self._stored = store.active() if store else []  # as of the last loading or saving
        self._active: dict[str, Commit | None] = dict.fromkeys(self._stored)  # None: still in the store only
        # Of lessons that are in the store only, read once: each new lesson asks all earlier ones. Copies share it, what is there stays.
        # Of records it is what tells which facts are closed.
        self._read_records: dict[str, Mapping[str, Any]] = {}
        self._read_cues: dict[str, Cues | None] = {}

    @property
    def saved(self) -> bool:
        """Whether the store holds everything."""
        return self.store is not None and not self._pending

    def active(self) -> list[str]:
        """Ids of the lessons that were learned and not reverted since, in the order in which they were learned."""
        return list(self._active)

    def resolve(self, prefix: str) -> str:
        """The full id of the one active lesson whose id starts with `prefix`."""
        found = [id for id in self._active if prefix and id.startswith(prefix.lower())]
        if len(found) != 1:
            what = "no active lesson has" if not found else f"{len(found)} lessons have"
            raise StoreError(f"{what} an id that starts with {prefix!r}; `memgraft log` lists them")
        return found[0]

    def commit(self, prefix: str) -> Commit:
        """An active lesson."""
        id = self.resolve(prefix)
        known = self._active[id]
        if known is not None:
            return known
        assert self.store is not None
        return self.store.commit(id)

    def data(self, id: str) -> DataFile | None:
        """The file that an active lesson was taught from, where it is kept."""
        known = self._active[id]
        if known is not None:
            return known.data
        assert self.store is not None
        return self.store.data(id)

    def copy(self) -> History:
        """This history as it is now; what is learned and reverted later does not reach it."""
        other = History(self.store)
        other._pending, other._stored, other._active = list(self._pending), list(self._stored), dict(self._active)
        other._read_records, other._read_cues = self._read_records, self._read_cues
        return other

    def learn(self, commit: Commit) -> None:
        """Add a lesson. Raises StoreError where the same one is active already."""
        if commit.id in self._active:
            raise StoreError(f"the lesson {commit.id[:12]} is active already; revert it first to learn it again")
        self._active[commit.id] = commit
        self._pending.append(("learn", commit))

    def revert(self, prefix: str) -> RevertReport:
        """Take an active lesson back; reports which later ones are read together with it."""
        commit = self.commit(prefix)
        overlaps = self.overlaps(commit, self.active()[self.active().index(commit.id) + 1 :])
        del self._active[commit.id]
        self._pending.append(("revert", commit))
        return RevertReport(commit.id, commit.rows, overlaps)

    def overlaps(self, commit: Commit, others: Sequence[str]) -> tuple[Overlap, ...]:
        """Which of the other active lessons are read together with this one."""
        closed = closed_facts({**self._records(), commit.id: commit.record})  # it may be about to be learned
        messages = {entry.commit: entry.message for entry in self.store.history()} if self.store is not None else {}
        messages |= {id: known.message for id, known in self._active.items() if known is not None}
        own, found = still_open(commit.cues, closed[commit.id]), []
        for id in others:
            if not read_together(own, still_open(self.cues(id), closed[id])):
                continue
            overlap = overlap_of(id, messages[id], commit.changes, self._slots(id))
            if overlap is not None:
                found.append(overlap)
        return tuple(found)

    def state(self, tables: Sequence[str], width: int) -> dict[str, Rows]:
        """Per value table the fp32 sum, in order, of the changes of the active lessons that every text reads."""
        everywhere = [id for id in self._active if self.cues(id) is None]
        if self.store is not None and self.saved and self.store.active() == self.active():
            return self.store.sum_of(everywhere)
        changes = [self.content(id)[0] for id in everywhere]
        return {name: sum_rows((each[name] for each in changes if name in each), width) for name in tables}

    def scoped(self, superseded: Iterable[str] = ()) -> dict[str, frozenset[int]]:
        """The active lessons that have cues, in order, with the facts of each (as their cues number them) that open nothing any more.

        Those are the facts that another active lesson superseded: the old answer is not to be read beside the new one.

        Args:
            superseded: ids of facts that are superseded as well.
        """
        closed = closed_facts(self._records(), superseded)
        return {id: closed[id] for id in self._active if self.cues(id) is not None}

    def closing(self, taught: Mapping[str, str | None]) -> dict[str, tuple[str, str]]:
        """Facts that a lesson yet to be taught would hold closed, see `memgraft.superseding.closing`."""
        return closing(self._records(), taught)

    def replaced(self, olds: Iterable[str]) -> dict[str, list[str]]:
        """Of each fact of these ids, the ids of those that it superseded, directly or not, as active lessons say."""
        return chains_of(self._records().values(), olds)

    def facts(self) -> set[str]:
        """Ids of the facts that active lessons taught."""
        return {id for record in self._records().values() for id in facts_taught(record)}

    def _records(self) -> dict[str, Mapping[str, Any]]:
        return {id: self._record(id) for id in self._active}

    def cues(self, id: str) -> Cues | None:
        """The cues of an active lesson, by its full id; None where every text reads it."""
        known = self._active[id]
        if known is not None:
            return known.cues
        if id not in self._read_cues:
            assert self.store is not None
            self._read_cues[id] = self.store.cues(id)
        return self._read_cues[id]

    def without(self, id: str) -> History:
        """This history as if a lesson, given by its full id, had been taken back."""
        other = self.copy()
        other._pending.append(("revert", self.commit(id)))
        del other._active[id]
        return other

    def content(self, id: str) -> tuple[Mapping[str, Rows], Cues | None]:
        """The row changes of an active lesson, by its full id, and its cues."""
        known = self._active[id]
        if known is not None:
            return known.changes, known.cues
        assert self.store is not None
        content = self.store.content(id)
        self._read_cues[id] = content.cues  # these, so that they are not in memory twice where the model reads them on the same device
        return content.changes, content.cues

    def _slots(self, id: str) -> dict[str, Tensor]:
        known = self._active[id]
        if known is not None:
            return {name: rows.slots for name, rows in known.changes.items()}
        assert self.store is not None
        return self.store.slots(id)

    def _record(self, id: str) -> Mapping[str, Any]:
        known = self._active[id]
        if known is not None:
            return known.record
        if id not in self._read_records:
            assert self.store is not None
            self._read_records[id] = _of_use(self.store.record(id))
        return self._read_records[id]

    def current(self) -> bool:
        """Whether the active lessons of the store are still those that were loaded, or saved last."""
        return self.store is None or MemoryStore.open(self.store.path).active() == self._stored

    def save(self) -> None:
        """Bring the store up to date, in one change. StoreError where another process changed its lessons."""
        assert self.store is not None
        if not self.store.exists():
            raise StoreError(f"{self.store.path}: the store is no longer there; bring it back, or save into another folder")
        if not self._pending:
            return
        with self.store.lock():
            there = MemoryStore.open(self.store.path)
            if there.active() == self.active() != self._stored:  # saved, but interrupted before it was noted here
                self.store = there
            elif there.active() != self._stored:
                reverted = any(op == "revert" for op, _ in self._pending)
                raise StoreError(
                    f"{self.store.path}: another process changed the store since it was loaded; nothing was changed: "
                    f"load it again, or save into a new folder and add that with `memgraft merge`"
                    + (", and revert again what you reverted, of which a new folder knows nothing" if reverted else "")
                )
            else:
                self.store.apply(self._pending)
        self._pending, self._stored = [], self.active()
        for id, commit in self._active.items():
            if commit is not None:  # from now on the store has it
                self._read_cues[id], self._read_records[id], self._active[id] = commit.cues, _of_use(commit.record), None

    def lessons(self) -> Iterator[Commit]:
        """The active lessons in order, with the data that is kept; one at a time where they are in a store."""
        for id in self._active:
            yield replace(self.commit(id), data=self.data(id))

    def moved(self, store: MemoryStore) -> None:
        """Go on with a new store, made with `lessons`."""
        self.store, self._pending, self._stored = store, [], self.active()


def _of_use(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in FIELDS if name in record}
