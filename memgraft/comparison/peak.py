"""What a piece of work took: CPU seconds, and memory at most."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


class Meter:
    """CPU seconds, so that a busy machine does not count, and peak memory in bytes since it was made; what is done aside is no part of it.

    Args:
        floor: see `peak_memory`.
    """

    def __init__(self, device: torch.device, floor: int | None = None) -> None:
        self._device, self._floor = device, floor
        self._earlier: list[int] = []
        self._aside = 0.0
        self._peak = self._restarted()
        self._start = time.process_time()

    def _restarted(self) -> Callable[[], int | None]:
        with peak_memory(self._device, self._floor) as peak:
            return peak

    @property
    def seconds(self) -> float:
        return time.process_time() - self._start - self._aside

    @property
    def peak(self) -> int | None:
        """None where the system can't tell."""
        now = self._peak()
        return None if now is None else max(now, *self._earlier) if self._earlier else now

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done within counts for nothing."""
        start, peak = time.process_time(), self.peak
        try:
            yield
        finally:
            if peak is not None:
                self._earlier.append(peak)
            self._peak = self._restarted()
            self._aside += time.process_time() - start


@contextmanager
def peak_memory(device: torch.device, floor: int | None = None) -> Iterator[Callable[[], int | None]]:
    """Gives a function that returns the largest memory in use since the start, in bytes.

    On a GPU what the allocator held; else the process's resident set, everything else in the process included, but not what earlier
    work left allocated and unused. None where the system can't tell (not Linux).

    Args:
        floor: what was in use before others came in, such as a memory that a rival has nothing to do with (`in_use`): what is there
            now beyond that doesn't count.
    """
    before = in_use(device)
    beside = 0 if floor is None or before is None else max(0, before - floor)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - beside
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM, see proc(5)
    except OSError:
        yield lambda: None
        return
    yield lambda: None if (found := highest()) is None else found - beside


def in_use(device: torch.device) -> int | None:
    """The memory in use now, in bytes, without what earlier work left unused; None where the system can't tell."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    _give_back_unused()
    return _status("VmRSS")


def _give_back_unused() -> None:
    """Returns freed memory to the system: glibc keeps it, and the resident set would start at an earlier run's peak."""
    with suppress(OSError, AttributeError, TypeError):  # the last on Windows
        ctypes.CDLL(None).malloc_trim(0)


def highest() -> int | None:
    """The largest resident set of this process since it was last reset, in bytes; None where the system can't tell."""
    return _status("VmHWM")


def _status(field: str) -> int | None:
    if not STATUS.exists():
        return None
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
