"""The memory store on disk: made once, then changed only by learning and reverting lessons.

A change writes its new files first, under names that nothing refers to yet, and then replaces the manifest: that rename
is the commit point. A reader sees the store before or after it, never between, and needs no lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import filelock

from memgraft.errors import StoreError
from memgraft.store import files, folder, lessons
from memgraft.store import manifest as layout
from memgraft.store import merge as merging
from memgraft.store.create import build_store
from memgraft.store.draft import Draft
from memgraft.store.manifest import HistoryEntry, Manifest
from memgraft.store.reading import StoreReader
from memgraft.store.spec import StoreSpec
from memgraft.superseding import closed_facts

if TYPE_CHECKING:
    from torch import Tensor

    from memgraft.commits import Commit


@dataclass(frozen=True)
class GcReport:
    """What `gc` removed."""

    lessons: tuple[str, ...]
    bytes: int


class MemoryStore(StoreReader):
    """A grafted memory on disk: configuration, keys, usage, background text, and the lessons taught to it.

    Opening reads the manifest and the configuration and checks the size of every file; tensors are read when asked for,
    and their digests checked then. All methods raise StoreError, in one line, for a store that can't be used.
    """

    def __init__(self, path: Path, spec: StoreSpec, manifest: Manifest) -> None:
        """For `open` and `create` to call."""
        super().__init__(path.absolute(), spec, manifest)  # wherever the process goes on from here
        self._lock = filelock.FileLock(self.path / files.LOCK)

    def __reduce__(self) -> tuple[type[MemoryStore], tuple[Path, StoreSpec, Manifest]]:
        return MemoryStore, (self.path, self.spec, self.manifest)  # a lock belongs to one object

    def exists(self) -> bool:
        """Whether the folder still is a store."""
        return (self.path / layout.MANIFEST).is_file()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        spec: StoreSpec,
        memory: Mapping[str, Tensor],
        usage: Mapping[str, Tensor],
        background_texts: Iterable[str],
        lessons: Iterable[Commit] = (),
    ) -> MemoryStore:
        """Makes a store at `path`, which must not exist or be an empty folder. It appears whole, with all lessons, or not at all.

        Args:
            lessons: what it has learned, in order; they are taken one at a time.
        """
        return cls.open(build_store(Path(path), spec, memory, usage, background_texts, lessons))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> MemoryStore:
        """Opens a store for reading; `append` and `revert` take the lock when they are called."""
        root = Path(path)
        if not root.is_dir():
            raise StoreError(f"{root}: no such folder; make a memory store with `memgraft graft MODEL -o {root}`")
        manifest, earlier = folder.read_manifest(root), None
        while problem := next(folder.size_problems(root, manifest), None):
            manifest, earlier = folder.read_manifest(root), manifest
            if manifest == earlier:  # else another process changed the store meanwhile, and gc may have removed what was listed
                raise StoreError(f"{problem}; restore it from a copy of the store")
        return cls(root, folder.read_spec(root, manifest), manifest)

    def tag(self, name: str, point: str = "now") -> int:
        """Gives a point of the history a name, a new one if it has the name already; the number of entries at that point."""
        layout.check_tag(name)
        position = 0

        def add(draft: Draft) -> None:
            nonlocal position
            position = draft.manifest.position(point)
            draft.change.tags = {**draft.manifest.tags, name: position}

        self._change(add)
        return position

    def untag(self, name: str) -> None:
        """Removes a tag."""

        def remove(draft: Draft) -> None:
            if name not in draft.manifest.tags:
                raise StoreError(f"{self.path}: no tag is called {name!r}; `memgraft tag` lists them")
            draft.change.tags = {other: position for other, position in draft.manifest.tags.items() if other != name}

        self._change(remove)

    def append(self, commit: Commit) -> HistoryEntry:
        """Adds a lesson. It is in the store when this returns, and not at all when it raises."""
        self._change(lambda draft: draft.learn(commit))
        return self._manifest.history[-1]

    def revert(self, prefix: str, overlap: Literal["keep", "refuse"] = "keep") -> lessons.RevertReport:
        """Takes an active lesson back and says which later lessons are read together with it; its files stay in the store.

        A damaged lesson can be taken back, so that the store can be used again; what is read together with it is not known then.

        Args:
            overlap: `keep` those lessons as they are, or `refuse` to revert, also where damage hides whether there are any.
                (`memgraft.reteaching` can teach them again.)
        """
        overlaps: list[lessons.Overlap] = []

        def take_back(draft: Draft) -> None:
            id = draft.manifest.resolve(prefix)
            overlaps.extend(self._overlaps(draft.manifest, id, skip_damaged=overlap == "keep"))
            if overlaps and overlap == "refuse":
                raise StoreError(f"{self.path}: {lessons.overlap_refusal(id, overlaps)}")
            draft.revert(id)

        self._change(take_back)
        entry = self._manifest.history[-1]
        return lessons.RevertReport(entry.commit, entry.rows, tuple(overlaps))

    def apply(self, steps: Sequence[tuple[Literal["learn", "revert"], Commit]]) -> None:
        """Adds and reverts lessons, in order and in one change: all of it is in the store when this returns, or none."""

        def take_steps(draft: Draft) -> None:
            for op, commit in steps:
                if op == "learn":
                    draft.learn(commit)
                else:
                    draft.revert(commit.id)

        self._change(take_steps)

    def gc(self) -> GcReport:
        """Removes the files of reverted lessons that no tag needs, and what crashes left. Their history stays."""
        gone: list[HistoryEntry] = []
        with self.lock():
            before = self._disk_bytes()
            self._change(lambda draft: gone.extend(draft.collect()))
            return GcReport(tuple(entry.commit for entry in gone), before - self._disk_bytes())

    def merge(
        self, other: MemoryStore, overlap: Literal["refuse", "sum"] = "refuse", replacements: Mapping[str, Commit] | None = None
    ) -> merging.MergeReport:
        """Adds what another store of the same base and keys learned and took back, in one change.

        Args:
            overlap: where lessons of one store are read together with those of the other, `refuse` to merge, or `sum` them.
            replacements: lessons that were taught again on top of the merge, by the id of the one that each replaces.
        """
        report: merging.MergeReport | None = None

        def take_over(draft: Draft) -> None:
            nonlocal report
            report = self._take_over(draft, other)
            again = replacements or {}
            if overlap == "refuse":
                open_conflicts = tuple(conflict for conflict in report.conflicts if conflict.lesson not in again)
                merging.refuse(open_conflicts, str(self.path), "choose with --overlap whether they are summed or taught again")
            for id, commit in again.items():
                draft.revert(id)
                draft.learn(commit)

        self._change(take_over)
        assert report is not None
        return report

    def merge_plan(self, other: MemoryStore) -> merging.MergeReport:
        """What `merge` would bring; nothing is changed."""
        return self._take_over(Draft(self.path, self._manifest, self.spec.memory), other)

    def _take_over(self, draft: Draft, other: MemoryStore) -> merging.MergeReport:
        problem = self.identity.mismatch(other.identity)
        if problem:
            raise StoreError(f"{other.path}: can't be merged into {self.path}: {problem}")
        return merging.take_over(draft, self, other)

    def export(self, prefix: str, path: str | os.PathLike[str]) -> Commit:
        """Writes a lesson to a file of its own, for another store of the same base and keys."""
        from memgraft.store.exchange import export_lesson

        commit = self.commit(prefix)
        export_lesson(commit, self.identity, Path(path))
        return commit

    def import_(self, path: str | os.PathLike[str], overlap: Literal["refuse", "sum"] = "refuse") -> lessons.RevertReport:
        """Adds a lesson from a file that `export` wrote.

        Args:
            overlap: where it is read together with active lessons, `refuse` it, or `sum` them.
        """
        from memgraft.store.exchange import import_lesson

        commit = import_lesson(Path(path), self.identity)
        found: list[lessons.Overlap] = []

        def learn(draft: Draft) -> None:
            draft.learn(commit)
            messages = {entry.commit: entry.message for entry in draft.manifest.history}
            active = draft.manifest.active()
            closed = closed_facts({**{id: self.readable_record(id) for id in active}, commit.id: commit.record})
            own = lessons.still_open(commit.cues, closed[commit.id])
            together = (id for id in active if lessons.read_together(own, lessons.still_open(self.cues(id), closed[id])))
            shared = (lessons.overlap_of(id, messages[id], commit.changes, self.slots(id)) for id in together)
            found.extend(overlap for overlap in shared if overlap)
            if found and overlap == "refuse":
                raise StoreError(
                    f"{path}: the lesson would be read together with {len(found)} active ones, such as {found[0].commit[:12]} "
                    f"({found[0].place}); nothing was changed: "
                    f"add it with --overlap sum, or teach its data here with `learn`"
                )

        self._change(learn)
        return lessons.RevertReport(commit.id, commit.rows, tuple(found))

    def verify(self) -> list[str]:
        """Reads the whole store and checks every digest, id and number; what is wrong, a line each, none when all is well."""
        from memgraft.store.verify import problems

        while found := list(dict.fromkeys(problems(self, self._manifest))):
            try:
                now = folder.read_manifest(self.path)
            except StoreError:
                break
            if now == self._manifest:
                break
            self._manifest = now  # another process changed the store meanwhile, and gc may have removed what was listed
        return found

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other writers out for as long as the lesson takes; `append` and `revert` may be called within.

        StoreError at once when another process or store object is writing. Readers are never kept out.
        """
        with files.locked(self._lock, self.path):
            yield

    def _change(self, plan: Callable[[Draft], object]) -> None:
        """Under the lock: lets `plan` put the next change together, and commits it."""
        with self.lock():
            current = folder.read_manifest(self.path)  # another process may have changed the store since it was opened
            if any(current.files[name] != self._manifest.files[name] for name in (layout.CONFIG, layout.MEMORY)):
                raise StoreError(f"{self.path}: another store was put in its place since it was opened; open it again")
            self._manifest = current
            draft = Draft(self.path, current, self.spec.memory)
            plan(draft)
            self._manifest = folder.commit_change(self.path, current, draft.change)

    def _disk_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file() and path.name not in (files.LOCK, files.WRITER))
