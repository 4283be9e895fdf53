"""A disk that fails at each call of the file layer in turn: no space, I/O errors, renames that are refused."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.reliability.world import OPERATIONS, PRIMITIVES, World, examine, steps
from memgraft.errors import StoreError
from memgraft.store import files

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


def inject_everywhere(folder: Path, rounds: int, seed: int = 0) -> tuple[int, list[str]]:
    """Every call of every operation fails once a round, with one error after another; how many, and what went wrong."""
    world, rng = World(folder, seed), random.Random(seed)
    injected, wrong = 0, list[str]()
    for code in CODES:
        for _ in range(rounds):
            for name in OPERATIONS:
                store = world.store()
                before, operation = steps(store), world.operation(store, name)
                stays = rng.random() < 0.3
                for at in range(1, 10_000):
                    with failing(at, code, stays) as failed:
                        error = _outcome(lambda operation=operation, store=store: operation.run(store))  # type: ignore[misc]
                    found = examine(world.path, before, operation)
                    wrong += [f"{operation.name}, call {at}, {errno.errorcode[code]}: {found.problem or 'lost'}"] * (
                        bool(found.problem) or found.lost > 0
                    )
                    if not failed():
                        break
                    injected += 1
                    said = error is not None and ("nothing was changed" in error or "can't be taken back" in error)
                    if not said:
                        wrong.append(f"{operation.name}, call {at}, {errno.errorcode[code]}: ended with {error!r}")
                    if found.changed:
                        break  # the disk stayed broken, and the error said so
    return injected, wrong


@contextmanager
def failing(at: int, code: int, stays: bool) -> Iterator[Callable[[], bool]]:
    """Within, the `at`-th call of the file layer fails (and all later ones, if it stays so); gives whether that happened."""
    calls = 0
    own = {name: getattr(files, name) for name in PRIMITIVES}

    def wrapped(primitive: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at or (stays and calls > at):
                raise OSError(code, os.strerror(code))
            return primitive(*args)

        return call

    for name, primitive in own.items():
        setattr(files, name, wrapped(primitive))
    try:
        yield lambda: calls >= at
    finally:
        for name, primitive in own.items():
            setattr(files, name, primitive)


def _outcome(run: Callable[[], object]) -> str | None:
    try:
        run()
    except StoreError as error:
        return str(error)
    return None
