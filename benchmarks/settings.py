"""The settings of each method that the studies try."""

from __future__ import annotations

from memgraft.baselines import OSF, SGD, AdamW, Full, LoRA, Retrieval, SHiRA
from memgraft.comparison.grid import grid, memory, papers
from memgraft.comparison.methods import AnyMethod, Memory
from memgraft.teaching import IN_LAYERS
from memgraft.writers import SGD as SparseSGD
from memgraft.writers import Adam as SparseAdam
from memgraft.writers import LeastInterference

BACKGROUNDS = ("self-written", "c4", "wikitext", "taught", "probes")


def larger() -> dict[str, list[AnyMethod]]:
    """For lessons of more facts: of each method that the comparison has on its test split with all seeds, the setting that it has there."""
    chosen = ("memory", "retrieval", "memory (tfidf, sgd)", "lora", "lora + replay", "full")
    return {name: grid()[name][:1] for name in chosen}


def ranking() -> dict[str, list[AnyMethod]]:
    """Every ranking over t, all with SGD (Lin et al. 2025 §5)."""
    slots = (25, 100, 500)
    by_t: dict[str, list[AnyMethod]] = {name: [papers(name, t) for t in slots] for name in ("tfidf", "kl", "tf", "random")}
    return {**by_t, "all": [papers("all", 2**16)]}


def background() -> dict[str, list[AnyMethod]]:
    """Usage counted on other text, the probe set's own among it."""
    return {name: [method.model_copy(update={"background": name}) for method in (memory(), papers())] for name in BACKGROUNDS}


def optimizer() -> dict[str, list[AnyMethod]]:
    """AdamW against SGD for every method, three learning rates each; the memory's three writers, open to every text.

    The rate in the middle comes first, so that a study that is stopped has one of every optimizer.
    """
    adamw = {"lora": (2e-4, 5e-5, 5e-4), "full": (2e-5, 5e-6, 5e-5), "osf": (1e-4, 2e-5, 5e-4), "shira": (1e-3, 3e-4, 3e-3)}
    rivals: dict[str, AnyMethod] = {"lora": LoRA(passes=4), "full": Full(passes=4), "osf": OSF(passes=4), "shira": SHiRA(passes=4)}
    chosen: dict[str, list[AnyMethod]] = {}
    for name, rival in rivals.items():
        decay = 0.0 if name == "osf" else 0.1
        pairs = zip(adamw[name], (0.1, 0.01, 1.0), strict=True)
        steps = [step for adam, sgd in pairs for step in (AdamW(lr=adam, weight_decay=decay), SGD(lr=sgd))]
        chosen[name] = [rival.model_copy(update={"optimizer": step}) for step in steps]
    # Open to every text: behind cues no writer forgets, and there would be nothing to compare.
    own = memory(t=500, passes=6, scope="everywhere").recipe
    writers: list[SparseSGD | SparseAdam | LeastInterference] = [
        *(LeastInterference(learning_rate=lr) for lr in (10.0, 3.0, 30.0)),
        *(SparseSGD(learning_rate=lr) for lr in (3.0, 1.0, 10.0)),
        *(SparseAdam(learning_rate=lr) for lr in (1e-2, 1e-3, 1e-1)),
    ]
    for writer in writers:
        method = Memory(recipe=own.model_copy(update={"writer": writer}))
        chosen.setdefault(f"memory ({writer.name})", []).append(method)
    return chosen


def stream() -> dict[str, list[AnyMethod]]:
    """One setting a method for the stream of facts, each fact taught to the end before the next."""
    chosen = ("memory", "memory (tfidf, sgd)", "lora", "lora + replay", "full", "retrieval")
    return {name: grid()[name][:1] for name in chosen}


def documents() -> dict[str, list[AnyMethod]]:
    """For the stream of documents, ten passes of each: the memory at its default for texts and with more rows, rivals at the learning rate
    that they have on the comparison's test split, at three times that, and at a third."""
    passes, around = IN_LAYERS, (1, 3, 1 / 3)
    chosen: dict[str, list[AnyMethod]] = {
        "memory": [memory(scope="everywhere", passes=passes), memory(scope="everywhere", passes=passes, rows=500)],
        "retrieval": [Retrieval()],
        "memory (tfidf, sgd)": [papers(lr=lr, passes=passes) for lr in (1.0, 3.0, 0.3)],
        "lora": [LoRA(optimizer=AdamW(lr=2e-4 * factor), passes=passes) for factor in around],
        "lora + replay": [LoRA(optimizer=AdamW(lr=2e-4 * factor), passes=passes, replay=2) for factor in around],
        "full": [Full(optimizer=AdamW(lr=2e-5 * factor), passes=passes) for factor in around],
        "osf": [OSF(optimizer=AdamW(lr=2e-5 * factor, weight_decay=0), passes=passes) for factor in around],
        "shira": [SHiRA(optimizer=AdamW(lr=5e-4 * factor), passes=passes) for factor in around],
    }
    return chosen


STUDIES = {
    "pareto": grid,
    "larger": larger,
    "ranking": ranking,
    "background": background,
    "optimizer": optimizer,
    "stream": stream,
    "documents": documents,
}
