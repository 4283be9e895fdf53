"""Orthogonal subspace finetuning (Nayak et al. 2025, arXiv 2504.07097): only directions outside a weight's top singular ones move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

from pydantic import Field
from transformers import PreTrainedModel

from memgraft.baselines.adapters import adapted, import_peft, single_precision
from memgraft.baselines.optimizers import AdamW, Optimizer
from memgraft.baselines.rival import Rival


class OSF(Rival):
    """OSF as PEFT has it, on an fp32 copy: on a bf16 base PEFT replaces the trained tensors, and so loses their gradients' projection."""

    method: Literal["osf"] = "osf"
    # The trained factors are the base's own weights: decay would erase them.
    optimizer: Optimizer = Field(default_factory=lambda: AdamW(lr=2e-5, weight_decay=0), description="how the factors are trained")
    preserved: float = Field(0.5, gt=0, lt=1, description="share of each weight's singular directions that is frozen")
    targets: str | tuple[str, ...] = Field("all-linear", description="names of the linear layers; all-linear: all but the output head")

    @contextmanager
    def prepared(self, base: PreTrainedModel, seed: int) -> Iterator[PreTrainedModel]:
        """An fp32 copy, its linear layers decomposed."""
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        config = import_peft().OSFConfig(effective_rank=self.preserved, target_modules=targets, task_type="CAUSAL_LM")
        with single_precision(base) as twin, adapted(twin, config, seed) as model:
            yield cast(PreTrainedModel, model)

    def finished(self, model: PreTrainedModel) -> PreTrainedModel:
        """The copy with what was learned in its weights: decomposed layers are slow."""
        merged: PreTrainedModel = cast(Any, model).merge_and_unload()
        return merged
