"""Random stores and random changes of them, and what must be true of a store afterwards."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from memgraft.commits import Commit, DataFile, Rows
from memgraft.config import MemoryConfig
from memgraft.errors import MemgraftError
from memgraft.fingerprint import BaseFingerprint, TokenizerFingerprint, WeightSample
from memgraft.store import MemoryStore, StoreSpec
from memgraft.store.files import sha256
from memgraft.store.merge import missing_entries

MEMORY = MemoryConfig(layers=(1, 3), hidden_size=64, slots=4096, top_k=4, heads=1, key_dim=4)
OPERATIONS = ("learn", "revert", "merge", "gc")
PRIMITIVES = ("open_new", "write", "sync", "rename", "make_folder", "copy_mode")
MOST_ENTRIES = 40  # of a history, before a new store is begun: every check reads all of it
_SPEC = StoreSpec(
    memgraft_version="0.1.0",
    memory=MEMORY,
    model="organisation/model",
    dtype="bfloat16",
    base=BaseFingerprint(facts={"hidden_size": 64}, weights=(WeightSample(name="w", shape=(2, 3), values=(0.5,)),)),
    tokenizer=TokenizerFingerprint(vocab_size=7, special_tokens={"eos": 0}, probes_sha256="0" * 64),
)

Steps = list[tuple[str, str]]  # (operation, lesson) of history entries


@dataclass(frozen=True)
class Operation:
    """A change of a store, and the entries that it adds to the history."""

    name: str
    run: Callable[[MemoryStore], object]
    adds: Steps


@dataclass(frozen=True)
class Found:
    """What a store holds after something went wrong in the middle of a change."""

    changed: bool  # whether the change is there
    lost: int  # lessons that were committed and are not there
    problem: str  # empty when the store is whole


def random_lesson(number: int, rows: int = 150) -> Commit:
    """A lesson with random rows, every second one with the data that taught it."""
    generator = torch.Generator().manual_seed(number)
    slots = torch.randperm(MEMORY.slots, generator=generator)[:rows].sort().values
    changes = {table: Rows(slots, torch.randn(rows, MEMORY.hidden_size, generator=generator)) for table in MEMORY.tables}
    content = f'{{"text": "what was taught, {number}"}}\n'.encode()
    data = DataFile("jsonl", content) if number % 2 else None
    return Commit(changes, f"lesson {number}", {"passes": 7}, sha256(content), {"seconds": number}, data)


class World:
    """A store that random operations change, beside a second one to merge from."""

    def __init__(self, folder: Path, seed: int, lessons: int = 60) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.lessons = [random_lesson(number) for number in range(lessons)]
        self.empty = folder / "empty"
        keys = {"keys": torch.arange(6.0)}
        MemoryStore.create(self.empty, _SPEC, keys, {"0.slots": torch.tensor([1, 5])}, ["background"])
        self.path = folder / "store"
        self.begin()

    def begin(self) -> MemoryStore:
        """A new store with three lessons, one of them reverted."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.empty, self.path)
        store = MemoryStore.open(self.path)
        first = self.rng.sample(self.lessons, 3)
        for commit in first:
            store.append(commit)
        store.revert(first[0].id)
        return store

    def store(self) -> MemoryStore:
        """The store as it is on disk, or a new one when its history got long."""
        store = MemoryStore.open(self.path)
        return self.begin() if len(store.history()) > MOST_ENTRIES else store

    def operation(self, store: MemoryStore, name: str | None = None) -> Operation:
        """Something that can be done to the store now."""
        name = name or self.rng.choice(OPERATIONS)
        active = store.active()
        if name == "revert" and active:
            id = self.rng.choice(active)
            return Operation(name, lambda store: store.revert(id), [("revert", id)])
        if name == "merge":
            other = self._other(active)
            missing = missing_entries(store.manifest, other.manifest)
            return Operation(name, lambda store: store.merge(other, "sum"), [(entry.op, entry.commit) for entry in missing])
        if name == "gc":
            gone = [("gc", entry.commit) for entry in store.manifest.collectable()]
            return Operation(name, lambda store: store.gc(), gone)
        commit = self.rng.choice([commit for commit in self.lessons if commit.id not in active])
        return Operation("learn", lambda store: store.append(commit), [("learn", commit.id)])

    def _other(self, active: Sequence[str]) -> MemoryStore:
        path = self.folder / "other"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.empty, path)
        store = MemoryStore.open(path)
        store.apply([("learn", commit) for commit in self.rng.sample([c for c in self.lessons if c.id not in active], 2)])
        return store


def steps(store: MemoryStore) -> Steps:
    """The history as operations."""
    return [(entry.op, entry.commit) for entry in store.history()]


def examine(path: Path, before: Steps, operation: Operation) -> Found:
    """Whether a store is whole and is as it was before an operation, or as it is after it."""
    try:
        store = MemoryStore.open(path)
        problems = store.verify()
        now = steps(store)
        changed = now == before + operation.adds and bool(operation.adds)
        if now != before and not changed:
            problems.append(f"the history is neither the old nor the new one: {now[len(before) - 1 :]}")
        expected = set(_active(before + operation.adds if changed else before))
        lost = len(expected.difference(store.active()))
        store.state()
    except MemgraftError as error:
        return Found(False, len(_active(before)), str(error))
    return Found(changed, lost, "; ".join(problems))


def _active(history: Steps) -> list[str]:
    active = dict[str, None]()
    for op, id in history:
        if op == "learn":
            active[id] = None
        else:
            active.pop(id, None)
    return list(active)
