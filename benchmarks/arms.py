"""The arms of a benchmark: ways to teach the same batches to the same base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.measurement import Protocol
from memgraft.baselines import AdamW, LoRA
from memgraft.comparison.grid import memory, papers, without_cues
from memgraft.comparison.methods import AnyMethod, Base, Memory
from memgraft.config import Config
from memgraft.errors import MemgraftError
from memgraft.teaching import Recipe


class Arm(Config):
    """A way to teach, with the settings that are its own."""

    name: str
    kind: Literal["base", "memory", "lora"]
    settings: dict[str, Any]


def memory_arms(learning_rates: Sequence[float]) -> list[Arm]:
    """The package's own recipe, and the papers' rankings with their optimizer, every row kept and every read added."""
    choices: dict[str, Memory] = {"least-interference": memory(), "least-interference, no cues": without_cues()}
    for lr in learning_rates:
        choices |= {f"{ranking}+sgd, lr {lr:g}": papers(ranking, t=1000, lr=lr) for ranking in ("tfidf", "kl")}
    # Defaults are spelled out in the settings: a run made with other ones is another run.
    return [Arm(name=name, kind="memory", settings=_settings(method)) for name, method in choices.items()]


def _settings(method: Memory) -> dict[str, Any]:
    fields = {"ranking", "t", "rows", "settling", "writer", "until_loss", "loss"}
    if method.recipe.pruning != 1:  # younger than the first runs, which were made with 1
        fields.add("pruning")
    if method.recipe.scope != "everywhere":  # likewise
        fields.add("scope")
    return {**method.recipe.model_dump(mode="json", include=fields), "threshold": method.threshold}


def lora_arms(learning_rates: Sequence[float]) -> list[Arm]:
    """LoRA of rank 16, one arm a learning rate."""
    fixed = {"rank": 16, "alpha": 32, "targets": "all-linear", "weight_decay": 0.1}
    return [Arm(name=f"lora, lr {lr:.0e}", kind="lora", settings={**fixed, "lr": lr}) for lr in learning_rates]


def method_of(arm: Arm, protocol: Protocol) -> AnyMethod:
    """The arm as a method, with the protocol's passes."""
    if arm.kind == "base":
        return Base()
    if arm.kind == "lora":
        optimizer = {name: arm.settings[name] for name in ("lr", "weight_decay")}
        own = {name: value for name, value in arm.settings.items() if name not in optimizer}
        return LoRA(optimizer=AdamW(**optimizer), passes=protocol.passes, **own)
    own = {name: value for name, value in arm.settings.items() if name != "threshold"}
    recipe = Recipe.model_validate({"scope": "everywhere", **own, "passes": protocol.passes, "wordings": protocol.wordings})
    return Memory(recipe=recipe, threshold=arm.settings["threshold"])


def chosen_arms(names: Sequence[str] | None, lora_lrs: Sequence[float], sgd_lrs: Sequence[float]) -> list[Arm]:
    """The base, then the arms whose name starts with one of `names` (all if None).

    Raises:
        MemgraftError: a name that fits no arm.
    """
    base = Arm(name="base", kind="base", settings={})
    arms = [*memory_arms(sgd_lrs), *lora_arms(lora_lrs)]
    if names is None:
        return [base, *arms]
    for name in names:
        if not any(arm.name.startswith(name) for arm in [base, *arms]):
            raise MemgraftError(f"no arm is called {name!r}: expected {', '.join(arm.name for arm in arms)}, or how one of them starts")
    return [base, *(arm for arm in arms if any(arm.name.startswith(name) for name in names))]
