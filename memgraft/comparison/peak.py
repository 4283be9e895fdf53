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
def peak_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Gives a function that returns the largest memory in use since the start, in bytes.

    On a GPU what the allocator held; else the process's resident set, everything else in the process included, but not what earlier
    work left allocated and unused. None where the system can't tell (not Linux).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    _give_back_unused()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM, see proc(5)
    except OSError:
        yield lambda: None
        return
    yield highest


def _give_back_unused() -> None:
    """Returns freed memory to the system: glibc keeps it, and the resident set would start at an earlier run's peak."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def highest() -> int | None:
    """The largest resident set of this process since it was last reset, in bytes; None where the system can't tell."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
