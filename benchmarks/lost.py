"""Why facts of a stream are not answered: which lessons are read where the answer should begin, of those that are wrong or went wrong.

    python -m benchmarks.lost STORE --data FOLDER      # results/lost/summary.json, 0.2 seconds a fact

The store is one that the stream of `benchmarks.recipe` left under its `--cache`; what each fact was answered like right after its lesson
lies beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import FACTS, SHOTS, data_file, read_rows
from benchmarks.recombined import recombined
from benchmarks.writing import write_json
from memgraft.comparison.runs import environment, read_runs
from memgraft.errors import DataError, MemgraftError
from memgraft.grafted import GraftedModel
from memgraft.persistence import load
from memgraft.probes import QuestionRow, f1, generate_answers
from memgraft.probes.measuring import few_shot_prompts


def main(argv: Sequence[str] | None = None) -> int:
    """Asks all and writes what is wrong. Exit status 1 with one line where something can't be used."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lost", description="Why facts of a stream are not answered.")
    parser.add_argument("store", type=Path, metavar="STORE")
    data = os.environ.get("MEMGRAFT_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data), help="folder of the data sets (default: MEMGRAFT_DATA)")
    parser.add_argument("-o", "--output", type=Path, default=Path("results", "lost"), help="folder (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        if options.data is None:
            raise DataError("no data: name the folder of the data sets with --data or MEMGRAFT_DATA")
        rows = read_rows(data_file(options.data, FACTS))
        grafted = load(options.store)
        visits = [visit for id, visit in read_runs(options.store.with_suffix(".jsonl")).items() if id.isdecimal()]
        if len(visits) != len(grafted.history.active()):
            lessons = len(grafted.history.active())
            raise DataError(f"{options.store}: {lessons} lessons, but {len(visits)} visits beside it: it is no stream's store, or not done")
        found = asked_again(grafted, [*rows, *recombined(rows)], visits)
    except MemgraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(options.output / "summary.json", {"facts": len(visits), "wrong": found, "environment": environment(grafted.device)})
    return 0


def asked_again(grafted: GraftedModel, rows: Sequence[Mapping[str, Any]], visits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the facts that are not fully right: F1 right after the lesson and now, and what is read where the answer should begin.

    Args:
        rows: of the data set and those recombined from it, which the visits' ids number.
        visits: of the active lessons, one fact each, in their order.
    """
    asked = [rows[int(visit["id"])] for visit in visits]
    questions = [QuestionRow(question=row["question"], answers=tuple(row["answers"])) for row in asked]
    prompts = few_shot_prompts(questions, SHOTS)
    answers = generate_answers(grafted.base, grafted.tokenizer, prompts)
    wrong = []
    for lesson, (visit, row, prompt, answer) in enumerate(zip(visits, asked, prompts, answers, strict=True)):
        now = round(f1(answer, tuple(row["answers"])), 4)
        if min(now, visit["f1"]) < 1:
            is_open, read = read_at_the_end(grafted, prompt)
            found = {"row": int(visit["id"]), "lesson": lesson, "relation": row["relation"], "then": round(visit["f1"], 4), "now": now}
            found |= {"open": lesson in is_open, "read": read, "of relations": [asked[each]["relation"] for each in read]}
            wrong.append(found)
    return wrong


@torch.no_grad()
def read_at_the_end(grafted: GraftedModel, prompt: str) -> tuple[set[int], list[int]]:
    """The places of the active lessons that are open at a prompt's last token, and of those that are read there."""
    grafted.base(**grafted.tokenizer(prompt, return_tensors="pt").to(grafted.device))
    active = grafted.history.active()
    places = [active.index(id) for id in grafted.history.scoped()]
    is_open = {places[number] for number, tokens in grafted.opened.items() if bool(tokens[0, -1])}
    return is_open, sorted(places[number] for number, at in grafted.answered.items() if int(at[0, -1]) >= 0)


if __name__ == "__main__":
    raise SystemExit(main())
