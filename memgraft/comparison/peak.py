"""How much memory something took at most."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


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
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def highest() -> int | None:
    """The largest resident set of this process since it was last reset, in bytes; None where the system can't tell."""
    return _status("VmHWM")


def _status(field: str) -> int | None:
    if not STATUS.exists():
        return None
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
