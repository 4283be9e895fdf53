"""How often cues open the memory, where they should and where they should not, by the number of facts taught.

    python -m benchmarks.cue_rates --data FOLDER -o results/cues/summary.json

Nothing is taught: cues are found before, from hidden states alone. Facts and their controls are of the tuning split, in the protocol's
wordings and test frame, whether or not the base knows them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.base_model import add_model_options
from benchmarks.behind_cues import opened
from benchmarks.measurement import FACTS, SHOTS, TEXT, data_file, read_rows, taught_rows
from benchmarks.probes import QUESTIONS
from benchmarks.selection import select_facts
from benchmarks.splits import split_of
from benchmarks.writing import write_json
from memgraft.comparison.grid import memory
from memgraft.comparison.runs import environment
from memgraft.comparison.workshop import Workshop
from memgraft.cues import Cues
from memgraft.errors import DataError, MemgraftError
from memgraft.examples import Fact
from memgraft.finding import find_cues
from memgraft.models import demo_model_path, load_model
from memgraft.probes.frames import choose_shots, few_shot_prompt, packaged_shots

WINDOW = 256  # tokens of text read at once


def share(found: Sequence[Tensor]) -> float:
    """Of the sequences, how many have the memory open at their end."""
    return round(sum(bool(each[-1]) for each in found) / len(found), 4)


def measure_rates(workshop: Workshop, data: Path, counts: Sequence[int], questions: int, text_tokens: int) -> Iterator[dict[str, Any]]:
    """A row of rates for each number of facts. DataError where a file can't be used."""
    rows = [row for row in read_rows(data_file(data, FACTS)) if split_of(row) == "tuning"]
    chosen = select_facts(rows, lambda indices: [True] * len(indices), max(counts), seed=0)
    facts = [Fact(line=1 + number, **row) for number, row in enumerate(taught_rows(rows, chosen))]
    tokenizer = workshop.tokenizer

    def prompts(asked: Sequence[str]) -> list[list[int]]:
        return [tokenizer(few_shot_prompt(question, choose_shots(question, packaged_shots(), SHOTS))).input_ids for question in asked]

    def asked(indices: Sequence[int]) -> list[str]:
        return [str(rows[index]["question"]) for index in indices]

    method = memory()
    grafted = workshop.grafted(method)
    grafted.assign_rows({})
    batches = workshop.prepare(facts, passes=2, wordings=method.recipe.wordings, seed=0)
    text = tokenizer(data_file(data, TEXT).read_text(encoding="utf-8")).input_ids[:text_tokens]
    windows = [text[start : start + WINDOW] for start in range(0, len(text), WINDOW)]
    others = {
        name: [str(row["question"]) for row in read_rows(data_file(data, Path("probes", f"{name}.jsonl")))[:questions]]
        for name, kind in QUESTIONS.items()
        if kind == "qa"
    }
    for count in sorted(counts):
        found = find_cues(grafted, batches[:count])
        if found is None:
            yield {"facts": count, "cues": 0}
            continue
        cues = found.cues

        def of_own(questions: Sequence[str], cues: Cues = cues, count: int = count) -> float:
            """How many questions open the memory by the cues of the fact that they ask for."""
            hits = 0
            for number, ids in enumerate(prompts(questions)):
                mine = cues.facts % count == number
                own = Cues(cues.keys[mine], cues.least[mine], (cues.facts[mine] != number).long())  # in both cases
                hits += bool(opened(grafted, own, [ids])[0][-1])
            return round(hits / len(questions), 4)

        taught = asked(chosen.taught[:count])
        read = opened(grafted, cues, windows)
        yield {
            "facts": count,
            "cues": int(cues.opens.sum()),
            "own question": of_own(taught),
            "own question in lower case": of_own([question.lower() for question in taught]),
            "question on another subject": share(opened(grafted, cues, prompts(asked(chosen.control[:count])))),
            **{name: share(opened(grafted, cues, prompts(listed))) for name, listed in others.items()},
            "WikiText-2 windows": share(read),
            "WikiText-2 tokens": round(float(torch.cat(read).float().mean()), 4),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the summary. Exit status 1 with one line where something can't be used."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cue_rates", description="How often cues open the memory.")
    data = os.environ.get("MEMGRAFT_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data), help="folder of the data sets (default: MEMGRAFT_DATA)")
    parser.add_argument("-o", "--output", type=Path, default=Path("results", "cues", "summary.json"), help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=Path("out", "cache"), help="folder for what is slow to make (default: %(default)s)")
    add_model_options(parser)
    parser.add_argument("--facts", type=int, nargs="+", default=[50, 200, 800], help="numbers of facts (default: 50 200 800)")
    parser.add_argument("--questions", type=int, default=300, help="of each probe (default: %(default)s)")
    parser.add_argument("--text-tokens", type=int, default=98_304, help="of WikiText-2 test (default: %(default)s)")
    parser.add_argument("--background-tokens", type=int, default=32_768, help="of self-written text (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        if options.data is None:
            raise DataError("no data: name the folder of the data sets with --data or MEMGRAFT_DATA")
        loaded = load_model(options.model or str(demo_model_path()), dtype=options.dtype)
        workshop = Workshop(loaded.model, loaded.tokenizer, background_tokens=options.background_tokens, cache=options.cache)
        with torch.no_grad():
            rates = list(measure_rates(workshop, options.data, options.facts, options.questions, options.text_tokens))
    except MemgraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sizes = {name: getattr(options, name) for name in ("questions", "text_tokens", "background_tokens")}
    summary = {"model": Path(loaded.source).name, **sizes, "rates": rates, "environment": environment(loaded.model.device)}
    write_json(options.output, summary)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
