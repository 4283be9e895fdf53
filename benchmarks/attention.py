"""How much quicker a step is with `memgraft.attention.quick_attention`: ratios of CPU seconds, with it and without in turns.

    OMP_NUM_THREADS=1 python -m benchmarks.attention      # results/attention/summary.json, two minutes

A step is eight sequences of 16 to 79 random tokens, about as long as a fact's wordings: for the memory all blocks above its
layer, for LoRA (rank 16, all linear layers) the whole model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch

from benchmarks.writing import write_json
from memgraft import attention
from memgraft.baselines.training import backward
from memgraft.comparison.runs import environment
from memgraft.encoding import TokenBatch
from memgraft.entering import FrozenPrefix, frozen
from memgraft.grafting import graft
from memgraft.models import demo_model_path, load_model
from memgraft.teaching import Recipe, read_gradients

LENGTHS = (16, 17, 20, 25, 54, 70, 74, 79)
PAIRS = 7


def main() -> None:
    """Times both kinds of step and writes the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention")
    parser.add_argument("-o", "--output", type=Path, default=Path("results", "attention"))
    options = parser.parse_args()
    loaded = load_model(str(demo_model_path()), dtype="bfloat16")
    model = graft(loaded.model, loaded.tokenizer, background=["The ship left the harbour.", "A lamp stood by the chair."])
    batch = random_batch()
    prefix = FrozenPrefix(model, model.config.layers[0], 2**30)

    def memory_step() -> None:
        read_gradients(model, batch, 0, Recipe(), prefix)

    with frozen(model):
        found = {"memory": ratios(memory_step)}
        with model.without_memory():
            lora: Any = peft.get_peft_model(model.base, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
            found["lora"] = ratios(lambda: backward(lora, batch))
    write_json(options.output / "summary.json", {"steps": found, "environment": environment(model.device)})
    for name, each in found.items():
        print(f"{name}: {each['quick']:.2f} s a step, {each['default']:.2f} s without; ratio {each['ratio']:.2f}")


def ratios(step: Callable[[], Any]) -> dict[str, Any]:
    """Median CPU seconds of a step with quick attention and without, and the median of their ratios, taken pair by pair."""
    limit, seconds = attention.LONGEST, dict[int, list[float]]()
    for _ in range(PAIRS + 1):  # the first pair warms up
        for longest in (limit, 0):
            attention.LONGEST = longest
            start = time.process_time()
            step()
            seconds.setdefault(longest, []).append(time.process_time() - start)
    attention.LONGEST = limit
    quick, default = seconds[limit][1:], seconds[0][1:]
    each = [round(one / other, 4) for one, other in zip(quick, default, strict=True)]
    return {"quick": round(median(quick), 4), "default": round(median(default), 4), "ratio": median(each), "ratios": each}


def random_batch() -> TokenBatch:
    """Sequences of random tokens, of which the last three are targets."""
    places = torch.arange(max(LENGTHS))[None]
    lengths = torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(1000, 40_000, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    mask = places < lengths
    return TokenBatch("random", ids, mask, mask & (places >= lengths - 3))


if __name__ == "__main__":
    main()
