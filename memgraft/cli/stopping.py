"""Ctrl-C and SIGTERM: a command is stopped by an exception, so that everything it holds is undone on the way out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came; treated like Ctrl-C but for the exit code."""


class Stopped(Exception):
    """A command was stopped on purpose: what to tell the user, and the exit code (128 + signal, as shells have it)."""

    def __init__(self, interrupt: KeyboardInterrupt, outcome: str = "") -> None:
        super().__init__("stopped" + (f": {outcome}" if outcome else ""))
        self.code = 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM raises Terminated. Without effect outside the main thread, which alone may handle signals."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def unstoppable() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM wait; they take effect on leaving. For what takes milliseconds and must be known to be done."""
    held: list[int] = []

    def hold(number: int, frame: Any) -> None:
        held.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, hold) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
