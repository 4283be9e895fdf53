"""Reading a memory store: all that it holds as of one manifest. Readers take no lock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memgraft.errors import StoreError
from memgraft.store import files, folder, lessons
from memgraft.store import manifest as layout
from memgraft.store.identity import Identity
from memgraft.store.manifest import HistoryEntry, Manifest
from memgraft.store.record import check_record
from memgraft.store.spec import StoreSpec
from memgraft.superseding import closed_facts

if TYPE_CHECKING:
    from torch import Tensor

    from memgraft.commits import Commit, DataFile, Rows
    from memgraft.cues import Cues
    from memgraft.store.diff import Diff


class StoreReader:
    """What a memory store holds: configuration, tensors, texts, lessons, and the state that their sum is."""

    def __init__(self, path: Path, spec: StoreSpec, manifest: Manifest) -> None:
        self.path = path
        self.spec = spec
        self._manifest = manifest

    def memory_tensors(self) -> dict[str, Tensor]:
        """The memory layers' own tensors (query projections, sub-keys, scale, gates), by the names they were stored under."""
        return self._tensors(layout.MEMORY)

    def usage_tensors(self) -> dict[str, Tensor]:
        """The background usage, by the names it was stored under."""
        return self._tensors(layout.USAGE)

    def background_texts(self) -> list[str]:
        """The texts that the usage was counted on."""
        texts = []
        for number, line in enumerate(self.read_member(layout.BACKGROUND).split(b"\n")[:-1], start=1):
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
        return lessons.decode_header(self.read_member(name), str(self.path / name))

    def record(self, prefix: str) -> dict[str, Any]:
        """What was measured when the lesson was learned, the last time if several."""
        commit = self.resolve(prefix)
        return self.read_record(layout.record_name(commit, self._manifest.times_learned(commit)))

    def readable_record(self, id: str) -> dict[str, Any]:
        """The record of a lesson, by its full id; empty where it is damaged, which must not keep a lesson from being taken back."""
        try:
            return self.record(id)
        except StoreError:
            return {}

    def read_member(self, name: str) -> bytes:
        """A file of the store by its name in the manifest; its digest is checked."""
        return folder.read_member(self.path, name, self._manifest)

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON member of the store by its name in the manifest."""
        return layout.parse(self.read_member(name), str(self.path / name))

    def read_record(self, name: str) -> dict[str, Any]:
        """A record by its name in the manifest, as it stands; `Record` can read it."""
        record = self.read_json(name)
        check_record(record, str(self.path / name), "restore it from a copy of the store")
        return record

    def read_data(self, name: str) -> bytes:
        """A kept data file by its name in the manifest; its name is its digest."""
        data = self.read_member(name)
        if files.sha256(data) != name.partition("/")[2].partition(".")[0]:
            raise StoreError(f"{self.path / name}: its SHA-256 is not its name; restore it from a copy of the store")
        return data

    def data(self, prefix: str) -> DataFile | None:
        """The file that a lesson was taught from, where the store was told to keep it."""
        from memgraft.commits import DataFile

        name = self._manifest.data_name(self.resolve(prefix))
        return None if name is None else DataFile("txt" if name.endswith(".txt") else "jsonl", self.read_data(name))

    def commit(self, prefix: str) -> Commit:
        """A lesson of the history, active or not, with its row changes; digests and content are checked."""
        from memgraft.commits import Commit

        id = self.resolve(prefix)
        header = self.header(id)
        content = self.content(id)
        commit = Commit(content.changes, header["message"], header["recipe"], header["data_sha256"], self.record(id), cues=content.cues)
        if commit.id != id:
            where = self.path / layout.changes_name(id)
            raise StoreError(f"{where}: holds another lesson, {commit.id[:12]}; restore it from a copy of the store")
        return commit

    def changes(self, id: str) -> Mapping[str, Rows]:
        """The row changes of a lesson, by its full id, per value table; their digest is checked."""
        return self.content(id).changes

    def cues(self, id: str) -> Cues | None:
        """The cues of a lesson, by its full id, without a look at its rows or digest."""
        return lessons.read_cues(folder.member_path(self.path, layout.changes_name(id), self._manifest), self.spec.memory)

    def slots(self, id: str) -> dict[str, Tensor]:
        """The slots (R,) int64 that a lesson wrote, by its full id, per value table, without a look at values or digest."""
        return lessons.read_slots(folder.member_path(self.path, layout.changes_name(id), self._manifest), self.spec.memory)

    def state(self, at: str = "now") -> dict[str, Rows]:
        """Per value table the rows that every text reads: the fp32 sum, in order, of the changes of lessons active at a point.

        Lessons that have cues are not among them: each of those is read by itself. Bit for bit what it would be had the reverted
        lessons never been learned, the set of slots included.

        Args:
            at: a tag, the id of a lesson (right after it was learned), `now` or `start`.
        """
        return self.sum_of([id for id in self._manifest.active(self._manifest.position(at)) if self.cues(id) is None])

    def sum_of(self, ids: Sequence[str]) -> dict[str, Rows]:
        """Per value table the fp32 sum, in order, of the changes of these lessons, by their full ids; holds one of them at a time."""
        from memgraft.commits import union_slots

        def slots_of(table: str) -> Iterator[Tensor]:
            for id in ids:
                slots = self.slots(id)
                if table in slots:
                    yield slots[table]

        slots = {table: union_slots(slots_of(table)) for table in self.spec.memory.tables}
        return lessons.sum_changes((self.changes(id) for id in ids), slots, self.spec.memory.hidden_size)

    def overlaps(self, prefix: str) -> list[lessons.Overlap]:
        """The active lessons learned after this one that texts read with it, at the same slots: what `revert` would report."""
        return self._overlaps(self._manifest, self.resolve(prefix))

    def diff(self, a: str, b: str) -> Diff:
        """What lies between two points of the history; points as in `state`."""
        from memgraft.store.diff import compare_points

        return compare_points(self, a, b)

    def tags(self) -> dict[str, int]:
        """Tags, and how many entries the history had at each."""
        return dict(self._manifest.tags)

    @property
    def identity(self) -> Identity:
        """What lessons of this store were written for."""
        return Identity.of(self.spec, self._manifest)

    @property
    def manifest(self) -> Manifest:
        """The manifest that this object reads by."""
        return self._manifest

    def _overlaps(self, manifest: Manifest, id: str, *, skip_damaged: bool = False) -> list[lessons.Overlap]:
        """As `overlaps`; with `skip_damaged` nothing is known of lessons that can't be read, where StoreError is raised otherwise."""
        active = manifest.active()
        if id not in active:
            return []
        messages = {entry.commit: entry.message for entry in manifest.history}
        closed = closed_facts({each: self.readable_record(each) for each in active})
        found = []
        try:
            content = self.content(id)
            own = lessons.still_open(content.cues, closed[id])
        except StoreError:
            if skip_damaged:
                return []
            raise
        for later in active[active.index(id) + 1 :]:
            try:
                if lessons.read_together(own, lessons.still_open(self.cues(later), closed[later])):
                    found.append(lessons.overlap_of(later, messages[later], content.changes, self.slots(later)))
            except StoreError:
                if not skip_damaged:
                    raise
        return [overlap for overlap in found if overlap is not None]

    def content(self, id: str) -> lessons.Content:
        """The row changes and cues of a lesson, by its full id; their digest is checked."""
        name = layout.changes_name(id)
        return lessons.decode(self.read_member(name), self.spec.memory, str(self.path / name))

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return lessons.load_tensors(self.read_member(name), str(self.path / name))
