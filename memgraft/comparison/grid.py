"""Settings of each method: what a comparison tries where nothing else is asked for."""

from __future__ import annotations

from typing import Any

from memgraft.baselines import OSF, SGD, AdamW, Full, LoRA, Retrieval, SHiRA
from memgraft.comparison.methods import AnyMethod, Memory
from memgraft.teaching import AT_ANCHORS, IN_LAYERS, Recipe
from memgraft.writers import LeastInterference


def memory(**settings: Any) -> Memory:
    """The package's own way to teach, but for the fields of `Recipe` that are given; no question in lower case, as for all methods."""
    return Memory(recipe=Recipe.model_validate({"lower_case": 0.0, "passes": AT_ANCHORS, **settings}))


def after_cues(**settings: Any) -> Memory:
    """Read at every token after a fact's cues, at a third of the depth, whatever is asked."""
    return memory(**{"scope": "cues", "passes": IN_LAYERS, **settings})


def without_cues(**settings: Any) -> Memory:
    """Open to every text: only how the memory is written, in shorter steps and more passes, spares what must be preserved."""
    return memory(**{"scope": "everywhere", "passes": 14, "pruning": 1, "writer": LeastInterference(max_step=0.7), **settings})


def papers(ranking: str = "tfidf", t: int = 500, lr: float = 3.0, passes: int = 6) -> Memory:
    """Sparse memory finetuning as in Lin et al. 2025: a count-based ranking and SGD, every row kept, every read added, no cues."""
    writer = {"name": "sgd", "learning_rate": lr}
    chosen = memory(ranking=ranking, t=t, rows=None, passes=passes, pruning=1, writer=writer, scope="everywhere")
    return chosen.model_copy(update={"threshold": 0.0})


def grid() -> dict[str, list[AnyMethod]]:
    """Five to eight settings a method, where it has that many; the optimizer is one of the things tuned.

    A comparison may end before all are run: retrieval, which teaches nothing, comes before the rivals that train, and of each method
    what did best for its time on the tuning split of `benchmarks.pareto`.

    Where more passes proved better, one setting has twice as many at half the learning rate.
    """
    return {
        "memory": [
            memory(),
            memory(passes=10),
            memory(passes=3),
            memory(writer=LeastInterference(max_step=2.0)),
            memory(writer=LeastInterference(ridge=2.0)),
        ],
        "retrieval": [
            Retrieval(),
            Retrieval(form="example"),
            Retrieval(passages=3, form="example"),
            Retrieval(passages=3),
        ],
        "memory (tfidf, sgd)": [papers(lr=1.0), papers(), papers(lr=10.0), papers(t=100, lr=10.0), papers(t=2000), papers(t=2000, lr=1.0)],
        "lora": [
            LoRA(optimizer=AdamW(lr=2e-4), passes=10),
            LoRA(optimizer=AdamW(lr=2e-4), passes=4),
            LoRA(optimizer=AdamW(lr=5e-5), passes=6),
            LoRA(optimizer=AdamW(lr=5e-4), passes=2),
            LoRA(optimizer=AdamW(lr=1e-4), rank=128, alpha=128, passes=4),
            LoRA(optimizer=SGD(lr=0.1), passes=4),
            LoRA(optimizer=AdamW(lr=1e-4), passes=20),
        ],
        "lora + replay": [
            LoRA(optimizer=AdamW(lr=2e-4), passes=10, replay=2),
            LoRA(optimizer=AdamW(lr=2e-4), passes=4, replay=2),
            LoRA(optimizer=AdamW(lr=5e-5), passes=6, replay=2),
            LoRA(optimizer=AdamW(lr=5e-4), passes=2, replay=2),
            LoRA(optimizer=AdamW(lr=2e-4), passes=4, replay=6),
            LoRA(optimizer=AdamW(lr=1e-4), passes=20, replay=2),
        ],
        "full": [
            Full(optimizer=AdamW(lr=2e-5), passes=10),
            Full(optimizer=AdamW(lr=2e-5), passes=3),
            Full(optimizer=AdamW(lr=5e-6), passes=4),
            Full(optimizer=AdamW(lr=1e-5), passes=3),
            Full(optimizer=AdamW(lr=1e-5), passes=20),
            Full(optimizer=SGD(lr=0.05), passes=4),
        ],
        "osf": [
            OSF(optimizer=AdamW(lr=2e-5, weight_decay=0), passes=4),
            OSF(optimizer=AdamW(lr=1e-4, weight_decay=0), passes=3),
            OSF(optimizer=AdamW(lr=5e-5, weight_decay=0), preserved=0.8, passes=4),
            OSF(optimizer=AdamW(lr=1e-5, weight_decay=0), passes=8),
            OSF(optimizer=SGD(lr=0.1), passes=4),
        ],
        "shira": [
            SHiRA(optimizer=AdamW(lr=1e-3), passes=4),
            SHiRA(optimizer=AdamW(lr=3e-4), passes=4),
            SHiRA(optimizer=AdamW(lr=3e-3), passes=3),
            SHiRA(optimizer=AdamW(lr=5e-4), passes=10),
            SHiRA(optimizer=SGD(lr=10.0), passes=4),
        ],
        "memory (cues)": [
            after_cues(),
            after_cues(rows=40),
            after_cues(passes=6),
            after_cues(rows=200),
            after_cues(passes=14, writer=LeastInterference(max_step=0.7)),
            after_cues(writer=LeastInterference(max_step=2.0)),
            after_cues(passes=3),
        ],
        "memory (no cues)": [without_cues(), without_cues(rows=300)],
    }
