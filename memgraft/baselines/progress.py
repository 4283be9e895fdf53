"""A rival's training in a file, so that one of hours survives a kill and goes on to the same bits."""

from __future__ import annotations

import glob
import os
import pickle
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from memgraft.errors import DataError


class Meter(Protocol):
    """What a process has spent on teaching, see `memgraft.comparison.peak.Meter`."""

    @property
    def seconds(self) -> float: ...

    @property
    def peak(self) -> int | None: ...

    def aside(self) -> AbstractContextManager[None]: ...


class TrainingFile:
    """Weights, optimizer and losses of a training that is under way. The file appears whole or not at all.

    Args:
        path: of the file; its folder is made where it is missing.
        key: all that shapes the training. A file with another key belongs to another one: it is not gone on with, and written over.
        every: seconds between writes; 0 writes after each step.
    """

    def __init__(self, path: Path, key: str, *, every: float = 300.0) -> None:
        self.path, self.key, self.every = path, key, every
        self.meter: Meter | None = None  # of this process; reading and writing the file count for nothing
        self._earlier: tuple[float, int | None] = (0.0, None)  # the same of those before
        self._written = time.monotonic()

    def restore(self, weights: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> list[float]:
        """Brings weights, optimizer and the random state to where they were, and returns the losses of the steps until then.

        Raises:
            DataError: the file can't be read.
        """
        with self._aside():
            found = self._read()
            if found is None:
                return []
            with torch.no_grad():
                for weight, kept in zip(weights, found["weights"], strict=True):
                    weight.copy_(kept)
            optimizer.load_state_dict(found["optimizer"])
            torch.set_rng_state(found["random"])
            if found["random_cuda"]:
                torch.cuda.set_rng_state_all(found["random_cuda"])
            self._earlier = (found["seconds"], found["peak"])
            return list(found["losses"])

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            if found["key"] == self.key:
                return found
        except (OSError, RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise DataError(f"{self.path}: not a training under way ({first}); delete it, and the training starts anew") from None
        warnings.warn(f"{self.path}: of another machine or revision; the training starts anew", stacklevel=2)
        return None

    def step(self, weights: Sequence[Tensor], optimizer: torch.optim.Optimizer, losses: Sequence[float], total: int) -> None:
        """To be called after each of `total` steps: writes the file where it is time to, and after the last.

        Where it can't be written, the training goes on with a warning.
        """
        if len(losses) < total and time.monotonic() - self._written < self.every:
            return
        seconds, peak = self.all_costs()
        state = {
            "key": self.key,
            "weights": [weight.detach() for weight in weights],
            "optimizer": optimizer.state_dict(),
            "losses": list(losses),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "seconds": seconds,
            "peak": peak,
        }
        with self._aside():
            try:
                self._write(state)
            except (OSError, RuntimeError) as error:  # the latter of torch, from a full disk
                warnings.warn(f"{self.path}: not written ({error}); a kill would lose what was trained", stacklevel=2)
        self._written = time.monotonic()

    def _write(self, state: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            torch.save(state, partial)
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def _aside(self) -> AbstractContextManager[None]:
        return nullcontext() if self.meter is None else self.meter.aside()

    def all_costs(self) -> tuple[float, int | None]:
        """CPU seconds of all processes that trained, together, and the most memory that one had, where any can tell.

        What a process did after it last wrote the file is not known; preparing the weights counts in each.
        """
        now = (0.0, None) if self.meter is None else (self.meter.seconds, self.meter.peak)
        peaks = [peak for _, peak in (self._earlier, now) if peak is not None]
        return self._earlier[0] + now[0], max(peaks, default=None)

    def remove(self) -> None:
        """Once what was trained is measured: takes away the file, and what a kill left of one half-written."""
        for path in (self.path, *self.path.parent.glob(f".{glob.escape(self.path.name)}.*.partial")):
            path.unlink(missing_ok=True)
