"""The core set of a fact: the slots that every wording of it and its question read (Lin et al. 2025 §6), and how many are needed.

    python -m benchmarks.core_sets --data FOLDER    # results/core-sets

Each fact is a line of runs.jsonl, numbers only: the size of its core set, what share of a token's reads falls on it, and the F1 of
its question with only the first n rows of the core set kept. The drawing over the tokens, which shows the data set's text, goes
to --drawing.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.materials import Choice
from benchmarks.measurement import SHOTS, question_probe
from benchmarks.pareto import output_of, parser_of, study_of
from benchmarks.study import Study
from memgraft.commits import Rows
from memgraft.comparison.grid import papers
from memgraft.comparison.methods import settings
from memgraft.comparison.runs import append_run, read_runs, run_id
from memgraft.encoding import TokenBatch
from memgraft.errors import MemgraftError
from memgraft.examples import Fact
from memgraft.grafted import GraftedModel
from memgraft.probes import QAProbe, measure
from memgraft.probes.language_model import evaluating
from memgraft.reads import Recorder, recording

KEPT = (0, 5, 10, 25, 50, 100, 250)


@dataclass(frozen=True)
class TokenReads:
    """What the tokens of one sequence read from one value table."""

    tokens: list[str]
    slots: Tensor  # (T, H, K)
    weights: Tensor  # (T, H, K)

    def weight_on(self, chosen: Tensor) -> Tensor:
        """(T,) share of each token's read weight that falls on the chosen slots."""
        hit = torch.isin(self.slots, chosen)
        share: Tensor = (self.weights * hit).sum((1, 2)) / self.weights.sum((1, 2))
        return share


def reads_of(grafted: GraftedModel, ids: Tensor) -> TokenReads:
    """The reads of one sequence (T,) in the first memory layer."""
    recorder = Recorder()
    row = ids[None].to(grafted.device)
    with evaluating(grafted.base), recording(grafted, recorder, torch.ones_like(row, dtype=torch.bool)):
        grafted.base(input_ids=row, use_cache=False)
    address = recorder.reads[grafted.config.tables[0]][0].address
    tokens = [str(grafted.tokenizer.decode([token])) for token in ids.tolist()]
    return TokenReads(tokens, address.slots.cpu(), address.weights.cpu())


def core_set(sequences: Sequence[TokenReads]) -> Tensor:
    """Slots that all sequences read, those with most of the last sequence's read weight first."""
    shared = sequences[0].slots.unique()
    for reads in sequences[1:]:
        shared = shared[torch.isin(shared, reads.slots)]
    last = sequences[-1]
    weight = torch.zeros(int(last.slots.max()) + 1).index_add_(0, last.slots.flatten(), last.weights.flatten())
    ordered: Tensor = shared[weight[shared].argsort(descending=True, stable=True)]
    return ordered


def kept_only(rows: Rows, slots: Tensor) -> Rows:
    """The rows of these slots; all others are empty."""
    chosen = torch.isin(rows.slots, slots)
    return Rows(rows.slots[chosen], rows.values[chosen])


def analyse(grafted: GraftedModel, batch: TokenBatch, fact: Fact, ask: Any) -> tuple[dict[str, Any], TokenReads, Tensor]:
    """The numbers of one fact, the reads of its question, and its core set.

    Args:
        ask: the F1 of the fact's question on the model as it is.
    """
    first = batch.round(0)
    wordings = [reads_of(grafted, ids[mask]) for ids, mask in zip(first.input_ids, first.attention_mask, strict=True)]
    prompt = grafted.tokenizer(f"Question: {fact.held_out[0]}\nAnswer:", return_tensors="pt").input_ids[0]
    question = reads_of(grafted, prompt)
    core = core_set([*wordings, question])
    (name,) = grafted.config.tables
    taught, cues = grafted.rows()[name], next((scoped.cues for scoped in grafted.state().scoped), None)
    f1 = {}
    try:
        for count in (*KEPT, len(core)):
            grafted.assign_rows({name: kept_only(taught, core[:count])}, cues)
            f1[str(count)] = ask()
    finally:
        grafted.assign_rows({name: taught}, cues)
    numbers = {
        "core_slots": len(core),
        "written_core_slots": len(kept_only(taught, core)),
        "question_slots": len(question.slots.unique()),
        "wording_slots": [len(reads.slots.unique()) for reads in wordings],
        "f1_all_rows": ask(),
        "f1_kept": f1,
        "question_weight_on_core": [round(float(weight), 4) for weight in question.weight_on(core)],
    }
    return numbers, question, core


def drawing(figures: Sequence[tuple[str, TokenReads, Tensor]]) -> str:
    """Question tokens, each as dark as its share of reads on the core set, as one HTML page."""
    lines = []
    for name, reads, core in figures:
        shares = reads.weight_on(core).tolist()
        spans = "".join(
            f'<span style="background:rgba(42,93,176,{share:.2f})">{html.escape(token)}</span>'
            for token, share in zip(reads.tokens, shares, strict=True)
        )
        lines.append(f"<p><b>{html.escape(name)}</b>, {len(core)} slots<br><code>{spans}</code></p>")
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Core sets</title><body>{"".join(lines)}</body></html>\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse the facts that are not in runs.jsonl yet. Exit status 1 with one line where something can't be used."""
    parser = parser_of("python -m benchmarks.core_sets", "Which slots a fact needs.")
    parser.add_argument("--drawing", type=Path, default=Path("out", "core-sets.html"), help="page of tokens (default: %(default)s)")
    parser.add_argument("--facts", type=int, default=10, help="of the tuning split (default: %(default)s)")
    options = parser.parse_args(argv)
    options.output = output_of(options, "core-sets")
    try:
        analyse_facts(study_of(options), options.facts, options.drawing)
    except MemgraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def analyse_facts(study: Study, count: int, page: Path) -> None:
    """Teach the facts as one lesson by the papers' recipe, then take them one by one. Nothing to do where all are in runs.jsonl."""
    material, method = study.materials.of(Choice("tuning", count, 0)), papers()
    taught = material.selection.taught
    shared = {**study.identity, "background_tokens": study.sizes.background_tokens, "taught": list(taught), "settings": settings(method)}
    recipes = {index: {**shared, "row": index} for index in taught}
    runs = read_runs(study.runs_path)
    if page.exists() and all(run_id(recipe) in runs for recipe in recipes.values()):
        return
    figures = []
    with study.workshop.taught(method, material.lesson):
        grafted = study.workshop.grafted(method)
        for index, batch, fact in zip(taught, material.lesson.batches, material.facts, strict=True):
            probe = question_probe("asked", [study.rows[index]], SHOTS)

            def ask(probe: QAProbe = probe) -> float:
                return measure(probe, grafted.base, grafted.tokenizer).values[0]

            numbers, question, core = analyse(grafted, batch, fact, ask)
            figures.append((fact.name, question, core))
            id = run_id(recipes[index])
            if id not in runs:
                append_run(study.runs_path, {"id": id, **numbers, "recipe": recipes[index], "environment": study.environment})
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(drawing(figures), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
