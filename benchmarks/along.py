"""Following a stream: facts or documents are taught one after the other, and some of the way all so far is asked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from benchmarks.materials import Material
from memgraft.baselines import Retrieval
from memgraft.comparison.measuring import AnyProbe, BaseScores, mean, measure_all
from memgraft.comparison.summary import LEARNED
from memgraft.comparison.workshop import SoFar, Workshop
from memgraft.probes import TextProbe

STREAMS = {"stream": "facts", "documents": "documents"}  # study → what comes one after the other
EARLIEST = 10  # questions about a stream's beginning that are followed


class Along:
    """What is measured of one method along a stream.

    `points` are what was measured after a tenth, a quarter, a half and all of what is taught: how much that is, what it took, F1 on all so
    far and on the earliest, the probes; of documents their own text as well, its NLL and how much more the base's is.
    """

    def __init__(self, unit: str, material: Material, workshop: Workshop, probes: Sequence[AnyProbe], base_scores: BaseScores) -> None:
        self.unit, self.material, self.workshop, self.probes, self.base_scores = unit, material, workshop, probes, base_scores
        self.points: list[dict[str, Any]] = []
        count = len(material.lesson.facts)
        self._places = sorted({max(1, count // 10), max(1, count // 4), max(1, count // 2), count})
        for place in self._places:  # before anything is taught, perhaps within the base
            for probe in self._texts(place):
                base_scores.of(probe)

    def on_step(self, so_far: SoFar) -> None:
        """Measures where that is due."""
        count, rest = divmod(so_far.done, so_far.total // len(self.material.lesson.facts))
        if rest == 0 and count in self._places:
            costs = so_far.costs()
            with so_far.model() as model:
                self.points.append({self.unit: count, **costs, **self._measured(model, count)})

    def searched(self, method: Retrieval) -> None:
        """All points of retrieval, which is not taught in steps."""
        for count in self._places:
            with self.workshop.taught(method, replace(self.material.lesson, facts=self.material.lesson.facts[:count])) as taught:
                costs = {"seconds": taught.seconds, "peak_bytes": None, "rows": None, "bytes": taught.bytes}
                self.points.append({self.unit: count, **costs, **self._measured(taught.model, count, taught.context)})

    def _measured(self, model: PreTrainedModel, count: int, context: Callable[[str], str] | None = None) -> dict[str, float]:
        learned = self.material.probes[0]
        so_far = learned.model_copy(update={"questions": learned.questions[: count * self.material.each]})
        texts = self._texts(count)
        values = measure_all(model, self.workshop.tokenizer, [so_far, *self.probes], context)
        own = measure_all(model, self.workshop.tokenizer, texts)
        f1 = values.pop(LEARNED)["values"]
        found = {"learned_f1": mean({"values": f1}), "earliest_f1": mean({"values": f1[:EARLIEST]})}
        for probe in texts:
            nll = mean(own[probe.name])
            found |= {f"{probe.name}_nll": nll, f"{probe.name}_gain": round(mean(self.base_scores.of(probe)) - nll, 6)}
        return {**found, **{name: mean(measured) for name, measured in values.items()}}

    def _texts(self, count: int) -> list[TextProbe]:
        earliest = min(count, EARLIEST // self.material.each)
        texts = {"text": self.material.texts[:count], "earliest_text": self.material.texts[:earliest]}
        return [TextProbe(name=name, texts=each) for name, each in texts.items() if each]
