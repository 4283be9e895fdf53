"""The memory and its rivals on a user's own facts and probes, within a time budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memgraft.asking import question_probe
from memgraft.baselines import Retrieval
from memgraft.comparison.measuring import AnyProbe, Measured, numbers
from memgraft.comparison.methods import AnyMethod, Base, described, settings
from memgraft.comparison.runs import append_run, due, environment, failed, read_runs, run_id
from memgraft.comparison.summary import BASE, CONTROL, LEARNED, MEMORY, NOTHING_TO_FORGET, OWN, grouped, pools
from memgraft.comparison.workshop import Lesson, Workshop
from memgraft.data import ExampleSet
from memgraft.errors import DataError, MeasureError, MemgraftError, TeachingError
from memgraft.examples import Fact
from memgraft.probes import measure

OnRun = Callable[[str], None]  # what is run now


@dataclass(frozen=True)
class Comparison:
    """All runs of a comparison, and the settings that there was no time for."""

    facts: tuple[Fact, ...]
    runs: tuple[dict[str, Any], ...]
    skipped: tuple[tuple[str, str], ...]  # method, settings


def facts_of(examples: ExampleSet, what: str = "compare") -> tuple[Fact, ...]:
    """The facts of a file. Raises DataError for other examples: what was learned of them can't be asked."""
    other = next((example for example in examples.examples if not isinstance(example, Fact)), None)
    if other is not None:
        raise DataError(f"{examples.path}:{other.line}: {what} needs facts to ask for: expected question and answers")
    return tuple(example for example in examples.examples if isinstance(example, Fact))


def run_comparison(
    workshop: Workshop,
    facts: Sequence[Fact],
    probes: Sequence[AnyProbe],
    methods: Mapping[str, Sequence[AnyMethod]],
    *,
    runs_path: Path,
    identity: Mapping[str, Any],
    seconds: float,
    controls: Sequence[Fact] = (),
    wordings: int = 8,
    seed: int = 0,
    on_run: OnRun = lambda what: None,
) -> Comparison:
    """Teaches and measures one setting after the other while there is time; each run is a line on disk as soon as it is done.

    The base and the first setting of each method come first. A further run starts only if it would still end in time: it is expected
    to take as long as the longest of its method so far, or of any, in proportion where it has more passes. Runs that are on disk
    already cost nothing.

    Args:
        identity: what else shapes the figures (model, data), part of each run's id.
        seconds: wall time for all runs of this call; the base and the first method are always run.

    Raises:
        DataError: probes of one name, or of which the base answers nothing.
    """
    start = time.monotonic()
    passes = [_passes(method) for each in methods.values() for method in each if not isinstance(method, Retrieval)] or [1]
    batches = workshop.prepare(facts, passes=max(passes), wordings=wordings, seed=seed, spread=min(passes))
    lesson = Lesson(facts, batches, seed)
    own = [question_probe(name, each, workshop.tokenizer) for name, each in ((LEARNED, facts), (CONTROL, controls)) if each]
    measured: list[AnyProbe] = [*own, *probes]
    taken = next((probe.name for probe in probes if probe.name in OWN), None)
    if taken is not None:
        raise DataError(f"a probe is called {taken!r}, which names what is asked about the facts; rename the file")
    names = [probe.name for probe in measured]
    if len(set(names)) < len(names):
        raise DataError(
            f"two probes have one name: {', '.join(sorted({name for name in names if names.count(name) > 1}))}; "
            "give the file another name, or a copy of it"
        )
    where = {**environment(workshop.base.device), "arithmetic": workshop.arithmetic()}
    shared = {
        **identity,
        "arithmetic": where["arithmetic"],  # on another machine all is measured again, the base as well
        "packages": where["packages"],
        "seed": seed,
        "wordings": wordings,
        "passes": max(passes),
        "spread": min(passes),
        "probes": [probe.model_dump(mode="json") for probe in measured],
    }
    known = read_runs(runs_path)
    runs: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    took: dict[str, list[tuple[float, int]]] = {}  # method → seconds and passes of its runs
    for name, method in in_turns(methods):
        id = run_id({**shared, "method": name, "settings": settings(method)})
        if due(id, known):
            earlier = took.get(name) or [each for others in took.values() for each in others]
            expected = max((spent * max(1, _passes(method) / passed) for spent, passed in earlier), default=0.0)
            if len(runs) > 1 and time.monotonic() - start + expected > seconds:
                skipped.append((name, described(method)))
                continue
            on_run(f"{name} {described(method)}".strip())
            begun = time.monotonic()
            needed = name == BASE or (name == MEMORY and not any(run["method"] == MEMORY and "failed" not in run for run in runs))
            run = _run(workshop, name, method, lesson, measured, needed=needed)
            known[id] = {"id": id, **run, "wall_seconds": round(time.monotonic() - begun, 3), "environment": where}
            append_run(runs_path, known[id])
        if name == BASE and not pools(*grouped([known[id]])):
            raise DataError(NOTHING_TO_FORGET)
        if name != BASE and "wall_seconds" in known[id] and "failed" not in known[id]:
            took.setdefault(name, []).append((known[id]["wall_seconds"], _passes(method)))
        runs.append(known[id])
    return Comparison(tuple(facts), tuple(runs), tuple(skipped))


def _passes(method: AnyMethod) -> int:
    return int(getattr(method, "passes", 1))


def in_turns(methods: Mapping[str, Sequence[AnyMethod]]) -> Iterator[tuple[str, AnyMethod]]:
    """The base, then the first setting of each method, the second of each, and so on."""
    yield BASE, Base()
    for turn in range(max(map(len, methods.values()), default=0)):
        for name, each in methods.items():
            if turn < len(each):
                yield name, each[turn]


def _run(workshop: Workshop, name: str, method: AnyMethod, lesson: Lesson, probes: Sequence[AnyProbe], *, needed: bool) -> dict[str, Any]:
    """A run, or why it failed; what it raises where there is nothing to compare with if it fails."""
    run = {"method": name, "settings": settings(method), "seed": lesson.seed, "facts": len(lesson.facts)}
    try:
        return {**run, **_measured(workshop, method, lesson, probes)}
    except Exception as error:
        ours = isinstance(error, MemgraftError)
        # A package that is missing is said before anything is taught.
        if needed or (ours and not isinstance(error, TeachingError | MeasureError | DataError)):
            raise
        if workshop.base.device.type == "cuda":
            torch.cuda.empty_cache()
        return {**run, **failed(error)}


def _measured(workshop: Workshop, method: AnyMethod, lesson: Lesson, probes: Sequence[AnyProbe]) -> dict[str, Any]:
    scores: dict[str, Measured] = {}
    answers: list[str] = []
    with workshop.taught(method, lesson) as taught:
        for probe in probes:
            result = measure(probe, taught.model, workshop.tokenizer, context=taught.context)
            scores[probe.name] = numbers(result)
            if probe.name == LEARNED:
                answers = [str(outcome["prediction"]) for outcome in result.outcomes]
    return {**taught.costs(), "answers": answers, "scores": scores}
