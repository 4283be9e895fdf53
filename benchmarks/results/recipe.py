"""What the default recipe was seen to do, in all its parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recipe import pooling
from benchmarks.results.cells import cell, points_table
from memgraft.report.markdown import plain, table


def recipe(path: Path) -> Iterator[str]:
    yield f"## The default recipe\n\n`python -m benchmarks.recipe` → `{path.as_posix()}`"
    if not path.exists():
        yield "Not run yet."
        return
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    if parts.get("taught"):
        yield from _taught(pooling.taught(pooling.latest(parts["taught"])))
    if parts.get("corrections"):
        found = pooling.corrections(pooling.latest(parts["corrections"]))
        yield f"Answers that change, {_seeds(found['seeds'])}:"
        groups = {"taught facts": found["taught"], "facts that the base knew": found["known"]}
        columns = ["changed", "facts", "newest answer, EM", "newest answer, F1", "old answer, EM"]
        scores = ("newest_wins", "newest_f1", "old_stays")
        yield table(columns, ([name, str(each["facts"]), *(cell(each.get(score)) for score in scores)] for name, each in groups.items()))
        misses = found["near_misses"]
        yield f"Near misses answered as before, after both: {misses['same']:,} of {misses['questions']:,}."
    for run in pooling.latest_streams(parts.get("stream", ())):
        yield f"A stream of {run['facts']:,} facts, each a lesson of its own, seed {run['seed']}:"
        yield from points_table(run["points"])
    if parts.get("namesakes"):
        yield from _namesakes(pooling.namesakes(pooling.latest(parts["namesakes"])))
    if parts.get("together"):
        found = pooling.together(pooling.latest(parts["together"]))
        yield (
            f"{found['facts']:,} facts and {found['namesakes']:,} about such namesakes of their subjects in one lesson, "
            f"{_seeds(found['seeds'])}: F1 {cell(found['first']['f1'])} of the first, {cell(found['second']['f1'])} of the namesakes."
        )


def _namesakes(found: Mapping[str, Any]) -> Iterator[str]:
    first, second = found["first"], found["second"]
    yield (
        f"{found['facts']:,} facts, each a lesson of its own, and then {found['namesakes']:,} about subjects whose names are put together "
        f"from two of theirs, {_seeds(found['seeds'])}; of the first, {found['worse']:,} were answered worse after the second:"
    )
    rows = [
        ["the first", cell(first["immediate_f1"]), cell(first["f1_before"]), cell(first["f1"])],
        ["their namesakes", cell(second["immediate_f1"]), "–", cell(second["f1"])],
    ]
    yield table(["facts", "F1 right after each lesson", "F1 before the namesakes", "F1 at the end"], rows)


def _taught(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{found['facts']} facts of the test split as one lesson, {_seeds(found['seeds'])}: {found['rows_per_fact']:.1f} rows and "
        f"{found['seconds_per_fact']:.1f} seconds a fact. *Holds*: a right answer occurs in what is written. In parentheses the base."
    )
    columns = ["asked", "learned F1", "learned, holds", "control F1", "control, holds"]
    yield table(columns, ([name, *_frame(frame)] for name, frame in found["frames"].items()))
    yield "Answered in the same words as by the base, of questions that it answers with p of .5 and more, and of general instructions:"
    local = {name: each for name, each in found["locality"].items() if each}
    rows = [[name.replace("_", " "), f"{each['same']:,} of {each['questions']:,}"] for name, each in local.items()]
    yield table(["questions", "the same"], rows)
    moved = [(name, each) for name, every in local.items() for each in every["moved"]]
    if moved:
        yield "Those that are answered in other words, by their row in EntityQuestions:"
        answers = ("another", "that of a taught fact")
        yield table(
            ["", "seed", "asked", "answer"],
            (
                [name.replace("_", " "), str(each["seed"]), plain(each["asked"]), answers[each["to_a_taught_answer"]]]
                for name, each in moved
            ),
        )
    told = local.get("instructions")
    if told:
        nll = f"{told['base_nll']:.4f} of its own answers, {told['taught_nll']:.4f} of the taught model's"
        yield f"NLL under the base of what is answered to the instructions: {nll}."


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _frame(frame: Mapping[str, Any]) -> Iterator[str]:
    for group in ("learned", "control"):
        for score in ("f1", "holds"):
            found, base = frame[group].get(score), frame[group]["base"].get(score)
            yield "–" if found is None else f"{found:.3f} ({base:.3f})"
