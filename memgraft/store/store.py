"""The memory store on disk: made once, then changed only by learning and reverting lessons.

A change writes its new files first, under names that nothing refers to yet, and then replaces the manifest: that rename
is the commit point. A reader sees the store before or after it, never between, and needs no lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from memgraft.errors import StoreError
from memgraft.store import files, folder, lessons
from memgraft.store import manifest as layout
from memgraft.store.create import build_store
from memgraft.store.manifest import HistoryEntry, Manifest
from memgraft.store.spec import StoreSpec

if TYPE_CHECKING:
    from torch import Tensor

    from memgraft.commits import Commit, Rows


class MemoryStore:
    """A grafted memory on disk: configuration, keys, usage, background text, and the lessons taught to it.

    Opening reads the manifest and the configuration and checks the size of every file; tensors are read when asked for,
    and their digests checked then. All methods raise StoreError, in one line, for a store that can't be used.
    """

    def __init__(self, path: Path, spec: StoreSpec, manifest: Manifest) -> None:
        """For `open` and `create` to call."""
        self.path = path
        self.spec = spec
        self._manifest = manifest
        self._lock = filelock.FileLock(path / files.LOCK)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        spec: StoreSpec,
        memory: Mapping[str, Tensor],
        usage: Mapping[str, Tensor],
        background_texts: Iterable[str],
    ) -> MemoryStore:
        """Makes a store without lessons at `path`, which must not exist or be an empty folder. It appears whole or not at all."""
        return cls.open(build_store(Path(path), spec, memory, usage, background_texts))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> MemoryStore:
        """Opens a store for reading; `append` and `revert` take the lock when they are called."""
        root = Path(path)
        if not root.is_dir():
            raise StoreError(f"{root}: no such folder; make a memory store with `memgraft graft MODEL -o {root}`")
        manifest = folder.read_manifest(root)
        problem = next(folder.size_problems(root, manifest), None)
        if problem:
            raise StoreError(f"{problem}; restore it from a copy of the store")
        return cls(root, folder.read_spec(root, manifest), manifest)

    def memory_tensors(self) -> dict[str, Tensor]:
        """The memory layers' own tensors (query projections, sub-keys, scale, gates), by the names they were stored under."""
        return self._tensors(layout.MEMORY)

    def usage_tensors(self) -> dict[str, Tensor]:
        """The background usage, by the names it was stored under."""
        return self._tensors(layout.USAGE)

    def background_texts(self) -> list[str]:
        """The texts that the usage was counted on."""
        texts = []
        for number, line in enumerate(self._read(layout.BACKGROUND).split(b"\n")[:-1], start=1):
            where = f"{self.path / layout.BACKGROUND}:{number}"
            value = layout.parse(line, where)
            if set(value) != {"text"} or not isinstance(value["text"], str):
                raise StoreError(f'{where}: expected {{"text": "…"}}; restore the file from a copy of the store')
            texts.append(value["text"])
        return texts

    def history(self) -> list[HistoryEntry]:
        """What was learned and reverted, oldest first. Reads nothing from disk."""
        return list(self._manifest.history)

    def active(self) -> list[str]:
        """Ids of the lessons that were learned and not reverted since, in the order in which they were learned."""
        return self._manifest.active()

    def resolve(self, prefix: str) -> str:
        """The full id of the one lesson in the history whose id starts with `prefix`."""
        return self._manifest.resolve(prefix)

    def header(self, prefix: str) -> dict[str, Any]:
        """A lesson's message, recipe, data_sha256 and format_version."""
        name = layout.header_name(self.resolve(prefix))
        return lessons.decode_header(self._read(name), str(self.path / name))

    def record(self, prefix: str) -> dict[str, Any]:
        """What was measured when the lesson was learned, the last time if several."""
        commit = self.resolve(prefix)
        return self.read_json(layout.record_name(commit, self._manifest.times_learned(commit)))

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON member of the store by its name in the manifest."""
        return layout.parse(self._read(name), str(self.path / name))

    def commit(self, prefix: str) -> Commit:
        """A lesson of the history, active or not, with its row changes; digests and content are checked."""
        from memgraft.commits import Commit

        id = self.resolve(prefix)
        header = self.header(id)
        commit = Commit(self._changes(id), header["message"], header["recipe"], header["data_sha256"], self.record(id))
        if commit.id != id:
            where = self.path / layout.changes_name(id)
            raise StoreError(f"{where}: holds another lesson, {commit.id[:12]}; restore it from a copy of the store")
        return commit

    def state(self) -> dict[str, Rows]:
        """Per value table the rows that lessons wrote: the fp32 sum of the active lessons' changes, in order.

        Bit for bit what it would be had the reverted lessons never been learned, the set of slots included.
        """
        from memgraft.commits import union_slots

        active = self.active()

        def slots_of(table: str) -> Iterator[Tensor]:
            for id in active:
                slots = lessons.read_slots(self.path / layout.changes_name(id), self.spec.memory)
                if table in slots:
                    yield slots[table]

        slots = {table: union_slots(slots_of(table)) for table in self.spec.memory.tables}
        return lessons.sum_changes((self._changes(id) for id in active), slots, self.spec.memory.hidden_size)

    def overlaps(self, prefix: str) -> list[lessons.Overlap]:
        """The active lessons learned after this one that wrote to some of its slots: what `revert` would report."""
        return self._overlaps(self._manifest, self.resolve(prefix))

    def append(self, commit: Commit) -> HistoryEntry:
        """Adds a lesson. It is in the store when this returns, and not at all when it raises."""
        changes, header, record = lessons.encode(commit, self.spec.memory, str(self.path))
        id = commit.id

        def learn(manifest: Manifest) -> tuple[HistoryEntry, dict[str, bytes]]:
            if id in manifest.active():
                raise StoreError(f"{self.path}: the lesson {id[:12]} is active already; revert it first to learn it again")
            new = {layout.record_name(id, manifest.times_learned(id) + 1): record}
            if layout.changes_name(id) not in manifest.files:
                new |= {layout.changes_name(id): changes, layout.header_name(id): header}
            return HistoryEntry(op="learn", commit=id, when=_now(), message=commit.message, rows=commit.rows), new

        return self._change(learn)

    def revert(self, prefix: str) -> lessons.RevertReport:
        """Takes an active lesson back and says which later lessons share slots with it; its files stay in the store."""
        overlaps: list[lessons.Overlap] = []

        def take_back(manifest: Manifest) -> tuple[HistoryEntry, dict[str, bytes]]:
            id = manifest.resolve(prefix)
            if id not in manifest.active():
                raise StoreError(f"{self.path}: the lesson {id[:12]} was reverted already; `memgraft log` shows the active ones")
            overlaps.extend(self._overlaps(manifest, id))
            learned = next(entry for entry in reversed(manifest.history) if entry.commit == id)
            return learned.model_copy(update={"op": "revert", "when": _now()}), {}

        entry = self._change(take_back)
        return lessons.RevertReport(entry.commit, entry.rows, tuple(overlaps))

    def verify(self) -> list[str]:
        """Reads the whole store and checks every digest, id and number; what is wrong, a line each, none when all is well."""
        from memgraft.store.verify import problems

        return list(dict.fromkeys(problems(self, self._manifest)))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other writers out for as long as the lesson takes; `append` and `revert` may be called within.

        StoreError at once when another process or store object is writing. Readers are never kept out.
        """
        with files.locked(self._lock, self.path):
            yield

    def _change(self, plan: Callable[[Manifest], tuple[HistoryEntry, dict[str, bytes]]]) -> HistoryEntry:
        """Under the lock: asks `plan` for the next history entry and its new files, and commits them."""
        with self.lock():
            current = folder.read_manifest(self.path)  # another process may have changed the store since it was opened
            if current.files[layout.CONFIG] != self._manifest.files[layout.CONFIG]:
                raise StoreError(f"{self.path}: another store was put in its place since it was opened; open it again")
            entry, new = plan(current)
            self._manifest = folder.commit_change(self.path, current, entry, new)
            return entry

    def _overlaps(self, manifest: Manifest, id: str) -> list[lessons.Overlap]:
        active = manifest.active()
        if id not in active:
            return []
        name = layout.changes_name(id)
        changes = lessons.decode(folder.read_member(self.path, name, manifest), self.spec.memory, str(self.path / name))
        messages = {entry.commit: entry.message for entry in manifest.history}
        found = []
        for later in active[active.index(id) + 1 :]:
            slots = lessons.read_slots(self.path / layout.changes_name(later), self.spec.memory)
            found.append(lessons.overlap_of(later, messages[later], changes, slots))
        return [overlap for overlap in found if overlap is not None]

    def _changes(self, id: str) -> dict[str, Rows]:
        name = layout.changes_name(id)
        return lessons.decode(self._read(name), self.spec.memory, str(self.path / name))

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return lessons.load_tensors(self._read(name), str(self.path / name))

    def _read(self, name: str) -> bytes:
        return folder.read_member(self.path, name, self._manifest)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
