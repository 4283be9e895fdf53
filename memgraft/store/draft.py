"""The next change of a store while it is put together: checked step by step, then committed as one."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from memgraft.config import MemoryConfig
from memgraft.errors import StoreError
from memgraft.store import files, lessons
from memgraft.store import manifest as layout
from memgraft.store.folder import Change
from memgraft.store.manifest import HistoryEntry, Manifest

if TYPE_CHECKING:
    from memgraft.commits import Commit


class Draft:
    """Steps on top of a manifest; `change` holds them. Each raises StoreError where the history does not allow it."""

    def __init__(self, root: Path, manifest: Manifest, memory: MemoryConfig) -> None:
        self.root = root
        self.manifest = manifest
        self.change = Change()
        self._memory = memory
        self._active = set(manifest.active())

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        """The history with the steps so far."""
        return (*self.manifest.history, *self.change.entries)

    def learn(self, commit: Commit) -> None:
        """Adds a lesson, and the data file that came with it."""
        changes, header, record = lessons.encode(commit, self._memory, str(self.root))
        id = commit.id
        if id in self._active:
            raise StoreError(f"{self.root}: the lesson {id[:12]} is active already; revert it first to learn it again")
        time = 1 + sum(entry.op == "learn" and entry.commit == id for entry in self.history)
        new = {layout.record_name(id, time): record, layout.changes_name(id): changes, layout.header_name(id): header}
        data = None
        if commit.data is not None:
            if files.sha256(commit.data.content) != commit.data_sha256:
                raise StoreError(f"{self.root}: the data to be kept is not what the lesson {id[:12]} was taught; nothing was changed")
            data = f"{commit.data_sha256}.{commit.data.kind}"
            new[f"{layout.DATA}/{data}"] = commit.data.content
        for name, content in new.items():
            if name not in self.manifest.files:
                self.change.files[name] = lambda content=content: content  # type: ignore[misc]
        self._active.add(id)
        self.change.entries.append(HistoryEntry(op="learn", commit=id, when=now(), message=commit.message, rows=commit.rows, data=data))

    def revert(self, id: str) -> None:
        """Takes an active lesson back; its files stay."""
        if id not in self._active:
            raise StoreError(f"{self.root}: the lesson {id[:12]} was reverted already; `memgraft log` shows the active ones")
        self._active.remove(id)
        self.change.entries.append(_follow(self._last(id), "revert"))

    def take(self, entry: HistoryEntry) -> None:
        """Takes over an entry of another store's history; its files are the caller's to add."""
        (self._active.add if entry.op == "learn" else self._active.discard)(entry.commit)
        self.change.entries.append(entry)

    def collect(self) -> list[HistoryEntry]:
        """Drops the files of every lesson that neither the memory nor a tag needs; the last entries of those lessons."""
        gone = list(self.manifest.collectable())
        for entry in gone:
            self.change.entries.append(_follow(entry, "gc"))
        return gone

    def _last(self, id: str) -> HistoryEntry:
        return next(entry for entry in reversed(self.history) if entry.commit == id)


def _follow(entry: HistoryEntry, op: str) -> HistoryEntry:
    return entry.model_copy(update={"op": op, "when": now(), "data": None})


def now() -> str:
    """The time as it stands in a history."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
