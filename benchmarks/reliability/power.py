"""Power cuts, which a kill can't show: what was written and not flushed is dropped, cut or zeroed, renames may be undone.

A fork makes a change and stops at a random call of the file layer without any clean-up, leaving a journal of its calls. The
folder is then brought into a state that a disk could come back with: bytes that were not flushed are lost at random, and so
is, for each name that was put in place since its folder was last flushed, the new name.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.world import OPERATIONS, PRIMITIVES, Operation, World, examine, steps
from memgraft.store import MemoryStore, files


def cut_many(folder: Path, count: int, seed: int = 0) -> list[str]:
    """So many power cuts during changes; what was wrong afterwards."""
    world, rng = World(folder, seed), random.Random(seed)
    usual = dict.fromkeys(OPERATIONS, 8)
    wrong = []
    for number in range(count):
        store = world.store()
        before, operation = steps(store), world.operation(store)
        saved = folder / "replaced"
        shutil.rmtree(saved, ignore_errors=True)
        saved.mkdir()
        at = rng.randint(1, usual[operation.name] + 1)
        journal, done = _cut(world.path, operation, at, saved)
        if done:
            usual[operation.name] = max(2, len(journal))
        _come_back(journal, saved, rng)
        found = examine(world.path, before, operation)
        if found.problem or found.lost or (done and operation.adds and not found.changed):
            wrong.append(f"cut {number}, {operation.name}, call {at}: {found.problem or 'lost'}")
            world.begin()
    return wrong


def _cut(path: Path, operation: Operation, at: int, saved: Path) -> tuple[list[list[Any]], bool]:
    """The journal of a change that stops before its `at`-th call, and whether it had returned by then."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(path, operation, at, saved, writer)
    os.close(writer)
    with os.fdopen(reader) as stream:
        journal = [json.loads(line) for line in stream]
    os.waitpid(child, 0)
    done = journal[-1:] == [["done"]]
    return [entry for entry in journal if entry != ["done"]], done


def _work(path: Path, operation: Operation, at: int, saved: Path, writer: int) -> None:
    calls = 0

    def journaled(name: str, primitive: Callable[..., object]) -> Callable[..., object]:
        def call(*args: Any) -> object:
            nonlocal calls
            calls += 1
            if calls == at:
                os._exit(0)
            if name in ("write", "sync"):
                entry = [name, os.readlink(f"/proc/self/fd/{args[0]}")]
            else:
                entry = [name, *(str(argument.resolve()) for argument in args)]
            if name == "rename" and args[1].exists():
                shutil.copyfile(args[1], saved / str(calls))
                entry.append(str(calls))
            os.write(writer, json.dumps(entry).encode() + b"\n")
            return primitive(*args)

        return call

    for name in PRIMITIVES:
        setattr(files, name, journaled(name, getattr(files, name)))
    try:
        operation.run(MemoryStore.open(path))
        os.write(writer, b'["done"]\n')
    finally:
        os._exit(0)


def _come_back(journal: list[list[Any]], saved: Path, rng: random.Random) -> None:
    """Brings the folder into a state that the disk may have after the cut."""
    unflushed: set[str] = set()  # files with bytes that were not flushed
    renames: list[list[Any]] = []  # since their folder was flushed
    for entry in journal:
        name, path = entry[0], entry[1]
        if name == "write":
            unflushed.add(path)
        elif name == "sync":
            unflushed.discard(path)
            renames = [rename for rename in renames if str(Path(rename[2]).parent) != path]
        elif name == "rename":
            renames.append(entry)
            if path in unflushed:
                unflushed.remove(path)
                unflushed.add(entry[2])
    for path in unflushed:
        _lose_bytes(Path(path), rng)
    for rename in reversed(renames):
        if rng.random() < 0.5:
            target = Path(rename[2])
            if target.exists():
                target.replace(rename[1])
            if len(rename) > 3:
                shutil.copyfile(saved / rename[3], target)


def _lose_bytes(path: Path, rng: random.Random) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    kept = rng.randint(0, len(data))
    match rng.randrange(4):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(data[:kept])
        case 2:
            path.write_bytes(data[:kept] + bytes(len(data) - kept))
        case _:
            pass
