"""Full finetuning: every weight is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pydantic import Field
from transformers import PreTrainedModel

from memgraft.baselines.adapters import single_precision
from memgraft.baselines.optimizers import AdamW, Optimizer
from memgraft.baselines.rival import Rival


class Full(Rival):
    """All weights of an fp32 copy of the base."""

    method: Literal["full"] = "full"
    optimizer: Optimizer = Field(default_factory=lambda: AdamW(lr=2e-5), description="how the weights are trained")

    @contextmanager
    def prepared(self, base: PreTrainedModel, seed: int) -> Iterator[PreTrainedModel]:
        """An fp32 copy, all of it trained."""
        with single_precision(base) as model:
            yield model.requires_grad_(True)
