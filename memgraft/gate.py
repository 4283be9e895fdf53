"""A gate: probes that must not get worse by a lesson, or the lesson is not kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memgraft.errors import GateError
from memgraft.probes import Change, Probe, Scores, compare, measure

if TYPE_CHECKING:
    from memgraft.grafted import GraftedModel


def forgot(change: Change, tolerance: float | None) -> bool:
    """Whether a probe got worse beyond chance and tolerance. Without one, drift is only reported: any write moves it."""
    if tolerance is None and change.metric == "drift KL":
        return False
    return change.worse(tolerance or 0.0)


class Gate:
    """Measures probes before a lesson and after it, earlier lessons being there both times.

    Args:
        tolerance: how much worse a mean may get, in its own unit; None: not at all, but drift may.
    """

    def __init__(self, probes: Sequence[Probe], tolerance: float | None = None) -> None:
        self.probes = tuple(probes)
        self.tolerance = tolerance
        self._before: tuple[Scores, ...] = ()

    def measure_before(self, model: GraftedModel) -> None:
        """Take the measure that the lesson is held to."""
        self._before = self._measure(model)

    def check(self, model: GraftedModel) -> list[dict[str, Any]]:
        """What changed, as JSON. GateError, which names every probe that fell, when the lesson must not be kept."""
        changes = [compare(before, after) for before, after in zip(self._before, self._measure(model), strict=True)]
        fallen = [change for change in changes if forgot(change, self.tolerance)]
        if fallen:
            raise GateError("the lesson is not kept: " + "; ".join(map(str, fallen)))
        return [change.summary() for change in changes]

    def _measure(self, model: GraftedModel) -> tuple[Scores, ...]:
        return tuple(measure(probe, model.base, model.tokenizer, memory_off=model.without_memory) for probe in self.probes)
