"""Facts one after the other, each a lesson of its own, visited once: what is kept of each at the end, and what the stream disturbs."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.measurement import taught_rows
from benchmarks.recipe.bench import Bench, example_set
from benchmarks.recipe.pooling import EARLIEST
from benchmarks.selection import Selection
from benchmarks.splits import SPLITS, rows_of
from memgraft.comparison.measuring import measure_all
from memgraft.comparison.runs import append_run, read_runs, run_id
from memgraft.errors import DataError
from memgraft.examples import Fact
from memgraft.grafted import GraftedModel
from memgraft.learning import learn
from memgraft.probes import QuestionRow, f1
from memgraft.teaching import Recipe

SAVED = 20  # lessons at a time
POINTS = (100, 500, 1000, 2000)  # facts after which the probes are measured, as at the end


def stream(bench: Bench, facts: int, seed: int) -> dict[str, Any]:
    """Teach so many facts that the base answers wrongly, as `stream_rows` chooses them; then ask all of them again.

    A longer stream of the same seed begins with the same facts, and goes on in the same store. Raises DataError where the store holds
    other lessons, or more than are asked for.
    """
    chosen = stream_rows(bench, facts, seed)
    grafted = bench.stored("stream", [], seed)
    assert grafted.history.store is not None
    path = grafted.history.store.path.with_suffix(".jsonl")
    visits = read_runs(path)
    rows = taught_rows(bench.rows, Selection(taught=tuple(chosen), control=()))
    names = [Fact(line=place, **row).name for place, row in enumerate(rows, 1)]
    taught, asked = bench.lessons(grafted), [id for id in visits if id.isdecimal()]
    if taught != names[: len(taught)] or asked != [str(number) for number in chosen[: len(asked)]] or len(asked) < len(taught):
        raise DataError(f"{path}: {len(taught)} lessons that a stream of {facts} facts does not begin with: take another --cache")
    how = run_id({"probes": [probe.model_dump(mode="json") for probe in bench.study.probes], "arithmetic": bench.study.arithmetic})
    points = {place: f"after {place}, {how}" for place in sorted({*(point for point in POINTS if point < facts), facts})}
    if missed := [place for place, id in points.items() if place < len(taught) and id not in visits]:
        raise DataError(f"{path}: after {len(taught)} lessons what was to be asked after {missed[0]} can't be: take another --cache")
    for place, (number, row) in enumerate(zip(chosen, rows, strict=True), 1):
        fact = Fact(line=place, **row)
        if fact.name not in taught:
            learn(grafted, example_set([fact]), message=fact.name, recipe=Recipe(seed=seed), test=False)
            visit = visited(bench, grafted, number)
            append_run(path, visit)
            visits[visit["id"]] = visit
        if place % SAVED == 0 or place in points:
            assert grafted.history.store is not None
            grafted.save(grafted.history.store.path)
            print(f"stream: {place} of {len(chosen)} facts", file=sys.stderr, flush=True)
        if place in points and points[place] not in visits:
            measured = after(bench, grafted, chosen[:place], visits)
            point = {"id": points[place], "facts": place, **measured, "environment": bench.study.environment}
            append_run(path, point)
            visits[point["id"]] = point
    return {"facts": facts, "points": [visits[id] for id in points.values()]}


def stream_rows(bench: Bench, count: int, seed: int) -> list[int]:
    """Rows that the base answers wrongly (F1 of 0): of the test split, then of the tuning split, then recombined ones, each shuffled.

    Raises DataError where there are fewer.
    """
    found: list[int] = []
    asked = set[str]()
    made = list(range(len(bench.study.rows), len(bench.rows)))
    for numbers in (*(rows_of(bench.study.rows, split) for split in SPLITS), made):
        random.Random(seed).shuffle(numbers)
        for number, known in zip(numbers, bench.known([bench.question(number) for number in numbers]), strict=True):
            question = bench.rows[number]["question"]
            if known.f1 == 0 and question not in asked:
                asked.add(question)
                found.append(number)
        if len(found) >= count:
            break
    if len(found) < count:
        raise DataError(f"the base answers {len(found)} of all questions wrongly, too few for --stream-facts {count}")
    return found[:count]


def visited(bench: Bench, grafted: GraftedModel, number: int) -> dict[str, Any]:
    """How well a fact is known right after its lesson."""
    question = bench.question(number)
    commit = grafted.history.commit(grafted.history.active()[-1])
    (answer,) = bench.ask(grafted, [question])
    rows = sum(len(changed) for changed in commit.changes.values())
    return {"id": str(number), "f1": f1(answer, question.answers), "rows": rows, "seconds": commit.record["seconds"]}


def after(bench: Bench, grafted: GraftedModel, numbers: Sequence[int], visits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All facts so far, asked again, and the probes against the base."""
    questions: list[QuestionRow] = [bench.question(number) for number in numbers]
    scores = [f1(answer, row.answers) for answer, row in zip(bench.ask(grafted, questions), questions, strict=True)]
    immediate = [visits[str(number)]["f1"] for number in numbers]
    measured = measure_all(grafted.base, grafted.tokenizer, bench.study.probes)
    change = {}
    for probe in bench.study.probes:
        base, now = bench.study.base_scores.of(probe), measured[probe.name]
        weights = now.get("weights") or [1.0] * len(now["values"])
        moved = sum(w * (b - a) for w, a, b in zip(weights, base["values"], now["values"], strict=True))
        change[probe.name] = {"base": mean(base["values"], weights), "change": round(moved / sum(weights), 6)}
    return {
        "immediate_f1": mean(immediate),
        "f1": mean(scores),
        "retained": round(sum(scores) / sum(immediate), 4) if sum(immediate) else None,
        "worse": sum(now < then for now, then in zip(scores, immediate, strict=True)),
        "earliest_f1": mean(scores[:EARLIEST]),
        "rows_per_fact": mean([visits[str(number)]["rows"] for number in numbers]),
        "probes": change,
    }


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Weighted mean, rounded."""
    if weights is None:
        return round(fmean(values), 4)
    return round(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights), 6)
