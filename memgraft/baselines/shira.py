"""Sparse high-rank adapters (Bhardwaj et al. 2024, arXiv 2406.13175): a few scattered weights of each matrix are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from memgraft.baselines.adapters import adapted, import_peft, single_precision
from memgraft.baselines.optimizers import AdamW, Optimizer
from memgraft.baselines.rival import Rival
from memgraft.errors import TeachingError


class SHiRA(Rival):
    """SHiRA as PEFT has it, with random masks, on an fp32 copy: its sum with a bf16 weight would be rounded to bf16 in every pass."""

    method: Literal["shira"] = "shira"
    optimizer: Optimizer = Field(default_factory=lambda: AdamW(lr=1e-3), description="how the scattered weights are trained")
    rank: int = Field(16, gt=0, description="as many weights of an m × n matrix as LoRA of this rank has: rank · (m + n)")
    targets: str | tuple[str, ...] = Field("all-linear", description="names of the linear layers; all-linear: all but the output head")

    @contextmanager
    def prepared(self, base: PreTrainedModel, seed: int) -> Iterator[PreTrainedModel]:
        """An fp32 copy with a sparse adapter inside."""
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        config = import_peft().ShiraConfig(r=self.rank, target_modules=targets, random_seed=seed, task_type="CAUSAL_LM")
        self._check_rank(base)
        with single_precision(base) as twin, adapted(twin, config, seed) as model:
            yield cast(PreTrainedModel, model)

    def _check_rank(self, base: PreTrainedModel) -> None:
        head = base.get_output_embeddings()
        for name, module in base.named_modules():
            if isinstance(module, nn.Linear) and module is not head and self.rank * sum(module.weight.shape) > module.weight.numel():
                raise TeachingError(f"SHiRA of rank {self.rank} has more weights than {name}; use a lower rank")

    def finished(self, model: PreTrainedModel) -> PreTrainedModel:
        """The copy with what was learned in its weights: the sparse sum is slow."""
        merged: PreTrainedModel = cast(Any, model).merge_and_unload()
        return merged
