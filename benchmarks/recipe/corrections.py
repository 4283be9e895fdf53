"""Answers that change: of facts that were taught, and of facts that the base knew by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.materials import Choice
from benchmarks.neighbours import subject_of
from benchmarks.recipe.bench import Bench
from benchmarks.recipe.taught import near_misses
from benchmarks.relations import facts_for
from benchmarks.splits import SPLITS, rows_of
from memgraft.errors import DataError
from memgraft.examples import Fact, normalise
from memgraft.grafted import GraftedModel
from memgraft.probes import QuestionRow, exact_match, f1


def corrections(bench: Bench, facts: int, changed: int, seed: int) -> dict[str, Any]:
    """Of `facts` taught ones (`taught` left them in the store), the first `changed` get another answer, and as many that the base knows.

    The new answer is that of another subject of the same relation, drawn by the seed.
    """
    material = bench.study.materials.of(Choice("test", facts, seed))
    grafted = bench.stored("taught", material.selection.taught, seed)
    bench.learn(grafted, material.facts, "taught", seed)
    taught = list(material.selection.taught[:changed])
    known = known_rows(bench, set(material.selection.taught), changed)
    order = random.Random(seed)

    def changed_row(number: int) -> dict[str, Any]:
        return {**bench.study.rows[number], "answers": [other_answer(bench, number, order)]}

    messages = {"taught", *(f"{changed} {kind} facts, changed" for kind in ("taught", "known"))}
    if others := [message for message in bench.lessons(grafted) if message not in messages]:
        raise DataError(f"the store has other corrections already, {others[0]!r}, which these would come on top of: take another --cache")
    new_taught, new_known = [changed_row(number) for number in taught], [changed_row(number) for number in known]
    bench.learn(grafted, facts_of(new_taught, supersede=True), f"{changed} taught facts, changed", seed)
    if new_known:
        bench.learn(grafted, facts_of(new_known, supersede=False), f"{changed} known facts, changed", seed)
    old = {"taught": [bench.question(number) for number in taught], "known": [bench.question(number) for number in known]}
    new = {"taught": new_taught, "known": new_known}
    unchanged = [bench.question(number) for number in material.selection.taught[changed:]]
    answered = [QuestionRow(question=row["question"], answers=tuple(row["answers"])) for row in (*new_taught, *new_known)]
    return {
        **{name: newest(bench, grafted, new[name], old[name]) for name in new},
        "near_misses": near_misses(bench, grafted, material, [*unchanged, *answered], but={subject_of(row) for row in new_known}),
    }


def known_rows(bench: Bench, taught: set[int], count: int) -> list[int]:
    """The first rows that the base answers rightly and nobody taught: of the test split, then of the tuning split."""
    found: list[int] = []
    for split in SPLITS:
        numbers = [number for number in rows_of(bench.study.rows, split) if number not in taught]
        answers = bench.known([bench.question(number) for number in numbers])
        found += [number for number, known in zip(numbers, answers, strict=True) if known.f1 == 1]
    return found[:count]


def other_answer(bench: Bench, number: int, order: random.Random) -> str:
    """The answer of another row of the same relation that is not right here."""
    row = bench.study.rows[number]
    right = {normalise(answer) for answer in row["answers"]}
    others = [each["answers"][0] for each in bench.study.rows if each["relation"] == row["relation"] and each["answers"]]
    return str(order.choice([answer for answer in others if normalise(answer) not in right]))


def facts_of(rows: Sequence[dict[str, Any]], *, supersede: bool) -> list[Fact]:
    """Facts to teach, each in place of the one of the same subject where it supersedes that."""
    facts = []
    for line, row in enumerate(facts_for(rows), 1):
        fields = {name: value for name, value in row.items() if name not in ("meta", "id")}
        more = {"supersedes": row["id"]} if supersede else {}
        facts.append(Fact(line=line, id=f"{row['id']}, changed", **more, **fields))
    return facts


def newest(bench: Bench, grafted: GraftedModel, new: Sequence[dict[str, Any]], old: Sequence[QuestionRow]) -> dict[str, Any]:
    """How often the new answer is given, and how often the old one."""
    if not old:
        return {"facts": 0}
    answers = bench.ask(grafted, old)
    pairs = list(zip(answers, new, old, strict=True))
    return {
        "facts": len(pairs),
        "newest_f1": round(fmean(f1(answer, row["answers"]) for answer, row, _ in pairs), 4),
        "newest_wins": round(fmean(exact_match(answer, row["answers"]) for answer, row, _ in pairs), 4),
        "old_stays": round(fmean(exact_match(answer, row.answers) for answer, _, row in pairs), 4),
    }
