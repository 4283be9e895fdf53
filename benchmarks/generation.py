"""How much slower a model is with a memory beside it: ratios of CPU seconds to the base model's, the two in turns.

    OMP_NUM_THREADS=1 python -m benchmarks.generation STORE…      # results/generation/summary.json, minutes

Of each store: tokens generated one by one behind short prompts, those that open no lesson and those that name the subjects of its facts,
and one pass over a long text.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.writing import write_json
from memgraft.comparison.runs import environment
from memgraft.errors import MemgraftError
from memgraft.grafted import GraftedModel
from memgraft.models import load_model
from memgraft.persistence import load
from memgraft.wordings import load_pool

PROMPTS = 4
NEW_TOKENS = 24
LONG = 1024  # tokens of a text
PAIRS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Times all and writes the ratios. Exit status 1 with one line where a store can't be used."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description="How much slower generation is with a memory.")
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE")
    parser.add_argument("-o", "--output", type=Path, default=Path("results", "generation"), help="folder (default: %(default)s)")
    options = parser.parse_args(argv)
    found = []
    try:
        for path in options.stores:
            grafted = load(path)
            base = load_model(grafted.source, dtype=_dtype(grafted)).model
            found.append({"model": Path(grafted.source).name, **measured(grafted, base), "environment": environment(grafted.device)})
            print(found[-1], file=sys.stderr, flush=True)
    except MemgraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(options.output / "summary.json", {"stores": found})
    return 0


def _dtype(grafted: GraftedModel) -> Any:
    return str(grafted.base.dtype).removeprefix("torch.")


@torch.no_grad()
def measured(grafted: GraftedModel, base: PreTrainedModel) -> dict[str, Any]:
    """Ratios with a store's memory, how many lessons and facts it has, and how many of the prompts opened one."""
    commits = [grafted.history.commit(id) for id in grafted.history.active()]
    names = ["".join(tokens) for commit in commits for tokens in commit.record.get("cues", ())]
    prompts = {
        "closed": [f"Question: {pair.question}\nAnswer:" for pair in load_pool("contexts")[:PROMPTS]],
        "open": [f"Question: What is known of {name}?\nAnswer:" for name in names[:: max(1, len(names) // PROMPTS)][:PROMPTS]],
    }
    result: dict[str, Any] = {"lessons": len(commits), "facts": len(names)}
    for kind, texts in prompts.items():
        sequences = [grafted.tokenizer(text, return_tensors="pt").input_ids for text in texts]
        if sequences:
            times = ratios(grafted.base, base, partial(_generate, sequences))
            result[kind] = {"prompts": len(texts), "opened": sum(_opens(grafted, ids) for ids in sequences), **times}
    assert grafted.background is not None
    long = grafted.tokenizer("\n\n".join(grafted.background.texts), return_tensors="pt").input_ids[:, :LONG]
    return {**result, "long text": {"tokens": long.shape[1], **ratios(grafted.base, base, lambda model: model(input_ids=long))}}


def _opens(grafted: GraftedModel, ids: torch.Tensor) -> bool:
    grafted.base(input_ids=ids)
    return bool(grafted.opened)


def _generate(sequences: Sequence[torch.Tensor], model: Any) -> None:
    for ids in sequences:
        mask = torch.ones_like(ids)
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)


def ratios(grafted: PreTrainedModel, base: PreTrainedModel, work: Callable[[PreTrainedModel], Any]) -> dict[str, Any]:
    """Median CPU seconds of both, and the median of their ratios, taken pair by pair."""
    seconds: list[list[float]] = []
    for _ in range(PAIRS + 1):  # the first pair warms up
        seconds.append([])
        for model in (grafted, base):
            start = time.process_time()
            work(model)
            seconds[-1].append(time.process_time() - start)
    each = [round(with_memory / alone, 4) for with_memory, alone in seconds[1:]]
    with_memory, alone = (round(median(pair[which] for pair in seconds[1:]), 4) for which in range(2))
    return {"seconds": with_memory, "base seconds": alone, "ratio": median(each), "ratios": each}


if __name__ == "__main__":
    raise SystemExit(main())
