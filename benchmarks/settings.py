"""The settings of each method that the studies try."""

from __future__ import annotations

from memgraft.baselines import OSF, SGD, AdamW, Full, LoRA, Retrieval, SHiRA
from memgraft.comparison.methods import AnyMethod, Memory
from memgraft.teaching import Recipe
from memgraft.writers import SGD as SparseSGD
from memgraft.writers import Adam as SparseAdam
from memgraft.writers import LeastInterference

BACKGROUNDS = ("self-written", "c4", "wikitext", "taught", "probes")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def memory(passes: int = 7, shrink: float = 0.7, t: int = 1000, background_weight: float = 300.0) -> Memory:
    """The package's own way to teach."""
    writer = LeastInterference(background_weight=background_weight)
    return Memory(recipe=Recipe(t=t, passes=passes, shrink=shrink, writer=writer))


def papers(ranking: str = "tfidf", t: int = 500, lr: float = 3.0, passes: int = 6) -> Memory:
    """Sparse memory finetuning as in Lin et al. 2025: a count-based ranking and SGD."""
    return Memory(
        recipe=Recipe.model_validate({"ranking": ranking, "t": t, "passes": passes, "shrink": 1.0, "writer": SparseSGD(learning_rate=lr)})
    )


def pareto() -> dict[str, list[AnyMethod]]:
    """Six settings a method, from cautious to bold; the optimizer is one of the things tuned."""
    return {
        "memory": [memory(), memory(passes=4), memory(shrink=0.5), memory(shrink=1.0), memory(background_weight=1000), memory(t=300)],
        "memory (tfidf, sgd)": [papers(), papers(lr=1.0), papers(lr=10.0), papers(t=100, lr=10.0), papers(t=2000), papers(t=2000, lr=1.0)],
        "lora": [
            LoRA(optimizer=AdamW(lr=2e-4), passes=4),
            LoRA(optimizer=AdamW(lr=5e-5), passes=6),
            LoRA(optimizer=AdamW(lr=5e-4), passes=2),
            LoRA(optimizer=AdamW(lr=1e-4), rank=128, alpha=128, passes=4),
            LoRA(optimizer=AdamW(lr=2e-4), targets=ATTENTION, passes=4),
            LoRA(optimizer=SGD(lr=0.1), passes=4),
        ],
        "lora + replay": [
            LoRA(optimizer=AdamW(lr=2e-4), passes=4, replay=2),
            LoRA(optimizer=AdamW(lr=5e-5), passes=6, replay=2),
            LoRA(optimizer=AdamW(lr=5e-4), passes=2, replay=2),
            LoRA(optimizer=AdamW(lr=2e-4), passes=4, replay=6),
            LoRA(optimizer=AdamW(lr=1e-4), rank=128, alpha=128, passes=4, replay=2),
            LoRA(optimizer=SGD(lr=0.1), passes=4, replay=2),
        ],
        "full": [
            Full(optimizer=AdamW(lr=2e-5), passes=3),
            Full(optimizer=AdamW(lr=5e-6), passes=4),
            Full(optimizer=AdamW(lr=1e-5), passes=3),
            Full(optimizer=AdamW(lr=5e-5), passes=2),
            Full(optimizer=SGD(lr=0.01), passes=4),
            Full(optimizer=SGD(lr=0.05), passes=4),
        ],
        "osf": [
            OSF(optimizer=AdamW(lr=2e-5, weight_decay=0), passes=4),
            OSF(optimizer=AdamW(lr=1e-4, weight_decay=0), passes=3),
            OSF(optimizer=AdamW(lr=5e-5, weight_decay=0), preserved=0.8, passes=4),
            OSF(optimizer=AdamW(lr=5e-5, weight_decay=0), preserved=0.2, passes=4),
            OSF(optimizer=SGD(lr=0.01), passes=4),
            OSF(optimizer=SGD(lr=0.1), passes=4),
        ],
        "shira": [
            SHiRA(optimizer=AdamW(lr=1e-3), passes=4),
            SHiRA(optimizer=AdamW(lr=3e-4), passes=4),
            SHiRA(optimizer=AdamW(lr=3e-3), passes=3),
            SHiRA(optimizer=AdamW(lr=1e-3), rank=64, passes=4),
            SHiRA(optimizer=SGD(lr=1.0), passes=4),
            SHiRA(optimizer=SGD(lr=10.0), passes=4),
        ],
        "retrieval": [Retrieval(passages=1), Retrieval(passages=3)],
    }


def ranking() -> dict[str, list[AnyMethod]]:
    """Every ranking over t, all with SGD (Lin et al. 2025 §5)."""
    slots = (25, 50, 100, 200, 500, 1000)
    by_t: dict[str, list[AnyMethod]] = {name: [papers(name, t) for t in slots] for name in ("tfidf", "kl", "tf", "random")}
    return {**by_t, "all": [papers("all", 2**16)]}


def background() -> dict[str, list[AnyMethod]]:
    """Usage counted on other text, the probe set's own among it."""
    return {name: [method.model_copy(update={"background": name}) for method in (memory(), papers())] for name in BACKGROUNDS}


def optimizer() -> dict[str, list[AnyMethod]]:
    """AdamW against SGD for every method, three learning rates each; the memory's three writers."""
    adam, sgd = (1e-3, 1e-2, 1e-1), (0.01, 0.1, 1.0)
    adamw = {"lora": (5e-5, 2e-4, 5e-4), "full": (5e-6, 2e-5, 5e-5), "osf": (2e-5, 1e-4, 5e-4), "shira": (3e-4, 1e-3, 3e-3)}
    rivals: dict[str, AnyMethod] = {"lora": LoRA(passes=4), "full": Full(passes=4), "osf": OSF(passes=4), "shira": SHiRA(passes=4)}
    chosen: dict[str, list[AnyMethod]] = {}
    for name, rival in rivals.items():
        decay = 0.0 if name == "osf" else 0.1
        steps = [*(AdamW(lr=lr, weight_decay=decay) for lr in adamw[name]), *(SGD(lr=lr) for lr in sgd)]
        chosen[name] = [rival.model_copy(update={"optimizer": step}) for step in steps]
    own = Recipe(t=500, passes=6, shrink=1.0)
    chosen["memory"] = [
        *(Memory(recipe=own.model_copy(update={"writer": LeastInterference(learning_rate=lr)})) for lr in (3.0, 10.0, 30.0)),
        *(Memory(recipe=own.model_copy(update={"writer": SparseSGD(learning_rate=lr)})) for lr in (1.0, 3.0, 10.0)),
        *(Memory(recipe=own.model_copy(update={"writer": SparseAdam(learning_rate=lr)})) for lr in adam),
    ]
    return chosen


def stream() -> dict[str, list[AnyMethod]]:
    """One setting a method for the stream of facts, each fact taught to the end before the next."""
    chosen = ("memory", "memory (tfidf, sgd)", "lora", "lora + replay", "full", "retrieval")
    return {name: pareto()[name][:1] for name in chosen}


STUDIES = {"pareto": pareto, "ranking": ranking, "background": background, "optimizer": optimizer, "stream": stream}
