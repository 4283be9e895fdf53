"""The arms of a benchmark: ways to teach the same batches to the same base model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.measurement import Protocol
from memgraft.baselines import train_lora
from memgraft.config import Config
from memgraft.encoding import TokenBatch
from memgraft.errors import MemgraftError
from memgraft.examples import Fact
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.learning import prepare
from memgraft.models import load_model
from memgraft.probes.language_model import context_length
from memgraft.teaching import Recipe, Step, teach

Progress = Callable[[str, int, int], None]  # (stage, done, total)


class Arm(Config):
    """A way to teach, with the settings that are its own."""

    name: str
    kind: Literal["base", "memory", "lora"]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Taught:
    """A taught model, ready to be measured, and what teaching it cost."""

    model: PreTrainedModel
    # All times are CPU seconds, so that a busy machine does not count.
    setup_seconds: float  # loading, grafting, calibrating, background: once per model, not per lesson
    seconds: float  # teaching
    bytes: int  # of what was learned
    rows: int | None  # memory rows that differ from zero, over all tables
    rows_per_fact: float | None  # rows that one fact's steps changed, mean over facts
    losses: tuple[float, ...]  # mean over the facts, for each pass

    def costs(self) -> dict[str, Any]:
        """Everything but the model, as JSON."""
        return {
            "setup_seconds": round(self.setup_seconds, 3),
            "seconds": round(self.seconds, 3),
            "bytes": self.bytes,
            "rows": self.rows,
            "rows_per_fact": self.rows_per_fact,
            "losses": [round(loss, 6) for loss in self.losses],
        }


def memory_arms() -> list[Arm]:
    """The papers' rankings with their optimizer, and the least-interference writer."""
    choices = {
        "tfidf+sgd": {"ranking": "tfidf", "writer": {"name": "sgd"}},
        "kl+sgd": {"ranking": "kl", "writer": {"name": "sgd"}},
        "least-interference": {"ranking": "tfidf", "writer": {"name": "least-interference"}},
    }
    # Defaults are spelled out in the settings: a run made with other ones is another run.
    fields = {"ranking", "t", "writer", "until_loss", "loss"}
    recipes = {name: Recipe.model_validate(choice).model_dump(mode="json", include=fields) for name, choice in choices.items()}
    return [Arm(name=name, kind="memory", settings=settings) for name, settings in recipes.items()]


def lora_arms(learning_rates: Sequence[float]) -> list[Arm]:
    """LoRA of rank 16, one arm a learning rate."""
    fixed = {"rank": 16, "alpha": 32, "targets": "all-linear", "weight_decay": 0.1}
    return [Arm(name=f"lora, lr {lr:.0e}", kind="lora", settings={**fixed, "lr": lr}) for lr in learning_rates]


class Workshop:
    """One base model from one source; grafts it once for all memory arms."""

    def __init__(self, source: str, device: torch.device, on_progress: Progress) -> None:
        self.source = source
        self.device = device
        self.on_progress = on_progress
        start = time.process_time()
        self.base, self.tokenizer = self._load()
        self.load_seconds = time.process_time() - start
        self._grafted: GraftedModel | None = None
        self._graft_seconds = 0.0

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        loaded = load_model(self.source)
        torch.nn.Module.to(loaded.model, self.device)  # transformers wraps .to() in a decorator that loses its type
        return loaded.model, loaded.tokenizer

    def batches(self, facts: Sequence[Fact], protocol: Protocol) -> list[TokenBatch]:
        """One batch a fact, the same for every arm."""
        recipe = Recipe(passes=protocol.passes, wordings=protocol.wordings, seed=protocol.seed)
        return prepare(facts, self.tokenizer, recipe, max_length=context_length(self.base) or 2**20)

    def teach(self, arm: Arm, batches: Sequence[TokenBatch], protocol: Protocol) -> Taught:
        """Teach the batches in the arm's way. The base model itself is never changed."""
        if arm.kind == "memory":
            return self.teach_memory(arm, batches, protocol)
        if arm.kind == "lora":
            return self.teach_lora(arm, batches, protocol)
        return Taught(self.base, self.load_seconds, 0.0, 0, None, None, ())

    def teach_memory(self, arm: Arm, batches: Sequence[TokenBatch], protocol: Protocol) -> Taught:
        """An empty memory over self-written background, taught as the arm's recipe says."""
        grafted = self._graft(protocol.seed)
        grafted.assign_rows({})
        taught_as = {"passes": protocol.passes, "wordings": protocol.wordings, "seed": protocol.seed}
        recipe = Recipe.model_validate({**arm.settings, **taught_as})
        start = time.process_time()

        def on_step(step: Step) -> None:
            self.on_progress(arm.name, step.done, step.total)

        lesson = teach(grafted, batches, recipe, grafted.usage, on_step=on_step)
        seconds = time.process_time() - start
        return Taught(
            grafted.base,
            self._graft_seconds,
            seconds,
            # fp32 values and an int64 slot id a row, as in a commit's file, without its header.
            bytes=sum(rows.values.nbytes + rows.slots.nbytes for rows in lesson.changes.values()),
            rows=sum(len(rows) for rows in lesson.changes.values()),
            rows_per_fact=sum(len(slots) for parts in lesson.batch_slots.values() for slots in parts) / len(batches),
            losses=tuple(fmean(losses) for losses in lesson.losses),
        )

    def _graft(self, seed: int) -> GraftedModel:
        if self._grafted is None:
            start = time.process_time()
            base, tokenizer = self._load()
            self._grafted = graft(base, tokenizer, seed=seed, on_progress=self.on_progress)
            self._graft_seconds = time.process_time() - start
        return self._grafted

    def teach_lora(self, arm: Arm, batches: Sequence[TokenBatch], protocol: Protocol) -> Taught:
        """A fresh adapter around a fresh copy of the base."""
        start = time.process_time()
        base, _ = self._load()
        loaded = time.process_time()

        def on_progress(done: int, total: int, loss: float) -> None:
            self.on_progress(arm.name, done, total)

        run = train_lora(base, batches, passes=protocol.passes, seed=protocol.seed, on_progress=on_progress, **arm.settings)
        size = len(batches)
        return Taught(
            cast(PreTrainedModel, run.model),
            loaded - start,
            time.process_time() - loaded,
            bytes=sum(parameter.nbytes for parameter in run.model.parameters() if parameter.requires_grad),
            rows=None,
            rows_per_fact=None,
            losses=tuple(fmean(run.losses[first : first + size]) for first in range(0, len(run.losses), size)),
        )


def chosen_arms(names: Sequence[str] | None, learning_rates: Sequence[float]) -> list[Arm]:
    """The base, then the arms whose name starts with one of `names` (all if None).

    Raises:
        MemgraftError: a name that fits no arm.
    """
    base = Arm(name="base", kind="base", settings={})
    arms = [*memory_arms(), *lora_arms(learning_rates)]
    if names is None:
        return [base, *arms]
    for name in names:
        if not any(arm.name.startswith(name) for arm in [base, *arms]):
            raise MemgraftError(f"no arm is called {name!r}: expected {', '.join(arm.name for arm in arms)}, or how one of them starts")
    return [base, *(arm for arm in arms if any(arm.name.startswith(name) for name in names))]
