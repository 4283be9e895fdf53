"""What a forward pass knows of itself: several threads may be in passes of one model at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from memgraft.anchors import Opened


@dataclass
class Pass:
    """One forward pass of the base model, from its start until the next one of the same thread.

    Shape suffixes: B sequences, T tokens.
    """

    mask: Tensor | None = None  # (B, all tokens so far), 0 at padding; None: there is none
    open_facts: dict[int, Opened] = field(default_factory=dict)  # number of a lesson → what of it is open
    opened: dict[int, Tensor] = field(default_factory=dict)  # → (B, T) bool, at which tokens it is open
    told: Callable[[int, Opened], Opened] | None = None  # with how fully names were said, of facts of a lesson by its number
    answered: dict[int, Tensor] = field(default_factory=dict)  # → (B, T) int64, which of its anchors they are at; -1: none


class Passes:
    """The pass that each thread is in. One that began none, such as autograd's, which computes a block again, is in the latest."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._latest = Pass()

    @property
    def current(self) -> Pass:
        found: Pass = getattr(self._own, "current", self._latest)
        return found

    def begin(self, mask: Tensor | None) -> None:
        """A pass of this thread starts."""
        self._own.current = self._latest = Pass(mask)

    def __deepcopy__(self, memo: dict[int, object]) -> Passes:
        return Passes()

    def __reduce__(self) -> tuple[type[Passes], tuple[()]]:
        return Passes, ()
