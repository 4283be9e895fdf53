"""SIGKILL while a store is being changed, at a moment inside the write window, and a log of where each one fell.

Each change runs in a fork of this warmed process, which announces every call of the file layer on a pipe before it makes
it. The parent waits for a random one of these announcements, and for up to two milliseconds more, and kills.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.world import OPERATIONS, PRIMITIVES, Operation, World, examine, steps
from memgraft.store import MemoryStore, files

OUTSIDE = 0.1  # of the kills come at a random time, be it inside the write window or not


@dataclass(frozen=True)
class Kill:
    """One kill and what it left."""

    operation: str
    event: str  # the last call that was announced
    inside: bool  # after the first call of the file layer and before the change returned
    changed: bool  # whether the change is there
    lost: int
    problem: str


def kill_many(folder: Path, count: int, seed: int = 0) -> list[Kill]:
    """So many kills that came before the change had returned, each followed by a check of the whole store."""
    world = World(folder, seed)
    rng = random.Random(seed)
    usual = dict.fromkeys(OPERATIONS, 8)  # calls that an operation makes
    kills: list[Kill] = []
    while len(kills) < count:
        store = world.store()
        before = steps(store)
        operation = world.operation(store)
        at = None if rng.random() < OUTSIDE else rng.randint(1, usual[operation.name])
        events, killed = _run_and_kill(world.path, operation, at, rng)
        if not killed:
            usual[operation.name] = max(2, len(events) - 1)
        found = examine(world.path, before, operation)
        acknowledged = events[-1:] == ["done"]
        lost = found.lost + (acknowledged and bool(operation.adds) and not found.changed)
        if killed or lost or found.problem:
            inside = bool(events) and not acknowledged
            kills.append(Kill(operation.name, events[-1] if events else "before", inside, found.changed, lost, found.problem))
        if lost or found.problem:
            world.begin()
    return kills


def _run_and_kill(path: Path, operation: Operation, at: int | None, rng: random.Random) -> tuple[list[str], bool]:
    """Announcements of the child, and whether it was killed before it ended by itself."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(path, operation, writer)
    os.close(writer)
    text = b""
    if at is None:
        time.sleep(rng.uniform(0, 0.02))
    else:
        while text.count(b"\n") < at:
            part = os.read(reader, 1 if text.count(b"\n") == at - 1 else 4096)
            if not part:
                break
            text += part
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, 0.002))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while select.select([reader], [], [], 0)[0]:
        part = os.read(reader, 4096)
        if not part:
            break
        text += part
    os.close(reader)
    return text.decode().splitlines(), os.WIFSIGNALED(status)


def _work(path: Path, operation: Operation, writer: int) -> None:
    def announced(name: str, primitive: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            target = Path(args[-1] if isinstance(args[-1], Path) else os.readlink(f"/proc/self/fd/{args[0]}")).name
            os.write(writer, f"{name} {_short(target)}".strip().encode() + b"\n")
            return primitive(*args)

        return call

    for name in PRIMITIVES:
        setattr(files, name, announced(name, getattr(files, name)))
    try:
        operation.run(MemoryStore.open(path))
        os.write(writer, b"done\n")
    finally:
        os._exit(0)


def _short(name: str) -> str:
    """A file's name without the lesson's id."""
    return "".join(part if len(part) < 60 else "<id>" for part in name.replace(".", "\0.\0").split("\0"))
