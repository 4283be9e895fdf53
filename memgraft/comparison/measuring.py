"""Probes of a comparison as numbers, item by item, and the base's share of them, measured once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.comparison.runs import run_id
from memgraft.comparison.writing import write_whole
from memgraft.errors import MemgraftError
from memgraft.probes import AnswerNLLProbe, ChoiceProbe, QAProbe, TextProbe, measure
from memgraft.probes.scores import Scores

Measured = dict[str, Any]  # metric, values and, where items weigh differently, weights
AnyProbe = QAProbe | AnswerNLLProbe | ChoiceProbe | TextProbe


def measure_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[AnyProbe],
    context: Callable[[str], str] | None = None,
) -> dict[str, Measured]:
    """Scores per probe, item by item, as JSON: numbers only, nothing of a data set's text."""
    return {probe.name: numbers(measure(probe, model, tokenizer, context=context)) for probe in probes}


def numbers(scores: Scores) -> Measured:
    """A probe's scores as JSON."""
    result: Measured = {"metric": scores.metric, "values": list(scores.values)}
    if scores.weights is not None:
        return {**result, "weights": list(scores.weights)}
    result["values"] = [round(value, 6) for value in scores.values]
    if scores.outcomes and "exact match" in scores.outcomes[0]:
        result["exact_match"] = [outcome["exact match"] for outcome in scores.outcomes]
    return result


def mean(measured: Measured) -> float:
    """The (weighted) mean of a probe's items. Raises MemgraftError where there are none."""
    values: list[float] = measured["values"]
    if not values:
        raise MemgraftError("nothing was measured")
    weights: list[float] = measured.get("weights") or [1.0] * len(values)
    return round(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights), 6)


class BaseScores:
    """What the untouched base scores on probes, kept in a file so that it is measured once for all runs."""

    def __init__(self, path: Path, identity: dict[str, Any], measure_probe: Callable[[AnyProbe], Measured]) -> None:
        self._path, self._identity, self._measure = path, identity, measure_probe
        self._kept = self._on_disk()

    def of(self, probe: AnyProbe) -> Measured:
        """The base's scores on a probe."""
        key = run_id({**self._identity, "probe": probe.model_dump(mode="json")})
        if key not in self._kept:
            self._kept = self._on_disk()  # another process may have measured it meanwhile
        if key not in self._kept:
            found = self._measure(probe)
            self._kept = {**self._on_disk(), key: found}
            write_whole(self._path, json.dumps(self._kept) + "\n")
        return self._kept[key]

    def _on_disk(self) -> dict[str, Measured]:
        return dict(json.loads(self._path.read_text(encoding="utf-8"))) if self._path.exists() else {}
