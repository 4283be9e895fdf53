"""Processes that kill themselves while they write a store: for the child processes of tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from memgraft.store import files

PRIMITIVES = ("open_new", "write", "sync", "rename", "make_folder")


def killed_at_each_call(action: Callable[[], object]) -> Iterator[tuple[int, int]]:
    """Forks a child that runs `action` and kills itself at its k-th call of a file primitive, for k = 1, 2, … without end.

    A killed write leaves half its bytes. Yields k and the child's status, as of `os.waitpid`, for the caller to look at the disk.
    """
    k = 0
    while True:
        k += 1
        child = os.fork()
        if child == 0:
            _kill_at(k)
            action()
            os._exit(0)
        yield k, os.waitpid(child, 0)[1]


def _kill_at(last: int) -> None:
    calls = 0

    def wrapped(primitive: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == last:
                if primitive.__name__ == "write":
                    os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return primitive(*args)

        return call

    for name in PRIMITIVES:
        setattr(files, name, wrapped(getattr(files, name)))
