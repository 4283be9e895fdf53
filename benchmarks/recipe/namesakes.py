"""Facts about some subjects and about namesakes of theirs: the latter taught after them, or all in one lesson."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.measurement import taught_rows
from benchmarks.recipe.bench import Bench, example_set
from benchmarks.recipe.stream import SAVED, mean, stream_rows
from benchmarks.recombined import recombined
from benchmarks.selection import Selection
from memgraft.comparison.runs import append_run, read_runs
from memgraft.errors import DataError
from memgraft.examples import Fact
from memgraft.learning import learn
from memgraft.probes import QuestionRow, f1
from memgraft.teaching import Recipe


def namesakes(bench: Bench, facts: int, seed: int) -> dict[str, Any]:
    """Teach so many facts, each a lesson of its own, then one about each subject that is put together from two of theirs; ask all.

    A namesake has the first words of one taught subject and the last words of another, and is asked for the same as both. Raises DataError
    where the store holds other lessons.
    """
    chosen = stream_rows(bench, facts, seed)
    first, second = with_namesakes(bench, chosen)
    rows = [*first, *second]
    grafted = bench.stored("namesakes", chosen, seed)
    assert grafted.history.store is not None
    path = grafted.history.store.path.with_suffix(".jsonl")
    visits = read_runs(path)
    taught = facts_of(rows)
    active = bench.lessons(grafted)
    if active != [fact.name for fact in taught[: len(active)]]:
        raise DataError(f"{path}: {len(active)} lessons that {facts} facts and their namesakes do not begin with: take another --cache")
    for place, (row, fact) in enumerate(zip(rows, taught, strict=True), 1):
        if place > len(active):
            learn(grafted, example_set([fact]), message=fact.name, recipe=Recipe(seed=seed), test=False)
            visit = {"id": row["question"], "f1": asked(bench, grafted, [row])[0]}
            append_run(path, visit)
            visits[visit["id"]] = visit
        if place % SAVED == 0 or place in (len(first), len(rows)):
            grafted.save(grafted.history.store.path)
            print(f"namesakes: {place} of {len(rows)} facts", file=sys.stderr, flush=True)
        if place == len(first) and "before" not in visits:
            visits["before"] = {"id": "before", "scores": asked(bench, grafted, first)}
            append_run(path, visits["before"])
    immediate = [visits[row["question"]]["f1"] for row in rows]
    before, now = visits["before"]["scores"], asked(bench, grafted, rows)
    return {
        "facts": facts,
        "namesakes": len(second),
        "first": {"immediate_f1": mean(immediate[:facts]), "f1_before": mean(before), "f1": mean(now[:facts])},
        "second": {"immediate_f1": mean(immediate[facts:]), "f1": mean(now[facts:])},
        "worse": sum(after < then for then, after in zip(before, now[:facts], strict=True)),
    }


def together(bench: Bench, facts: int, seed: int) -> dict[str, Any]:
    """Teach so many facts and one about each namesake of their subjects, as `namesakes` makes them, as one lesson; ask all."""
    chosen = stream_rows(bench, facts, seed)
    first, second = with_namesakes(bench, chosen)
    grafted = bench.stored("together", chosen, seed)
    bench.learn(grafted, facts_of([*first, *second]), "together", seed)
    scores = asked(bench, grafted, [*first, *second])
    return {
        "facts": facts,
        "namesakes": len(second),
        "first": {"f1": mean(scores[:facts])},
        "second": {"f1": mean(scores[facts:])},
    }


def with_namesakes(bench: Bench, chosen: Sequence[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """These rows, and those about namesakes of their subjects that the base answers wrongly. DataError where there are none."""
    first = [bench.rows[number] for number in chosen]
    made = recombined(first)
    known = bench.known([question_of(row) for row in made])
    second = [row for row, said in zip(made, known, strict=True) if said.f1 == 0]
    if not second:
        raise DataError(f"{len(chosen)} facts have no namesakes whose answer the base doesn't know: take more of them")
    return first, second


def facts_of(rows: Sequence[dict[str, Any]]) -> list[Fact]:
    """The rows as facts to teach."""
    fields = taught_rows(rows, Selection(taught=tuple(range(len(rows))), control=()))
    return [Fact(line=place, **each) for place, each in enumerate(fields, 1)]


def asked(bench: Bench, grafted: Any, rows: list[dict[str, Any]]) -> list[float]:
    """F1 of each row's answer."""
    questions = [question_of(row) for row in rows]
    return [round(f1(answer, row.answers), 4) for answer, row in zip(bench.ask(grafted, questions), questions, strict=True)]


def question_of(row: dict[str, Any]) -> QuestionRow:
    return QuestionRow(question=row["question"], answers=tuple(row["answers"]))
