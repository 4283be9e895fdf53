"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

from pydantic import Field
from transformers import PreTrainedModel

from memgraft.baselines.adapters import adapted, import_peft
from memgraft.baselines.optimizers import AdamW, Optimizer
from memgraft.baselines.rival import Rival


class LoRA(Rival):
    """LoRA as PEFT has it. The adapter is fp32 whatever the base's dtype: in bf16, usual steps would be rounded away."""

    method: Literal["lora"] = "lora"
    optimizer: Optimizer = Field(default_factory=lambda: AdamW(lr=2e-4), description="how the adapter is trained")
    rank: int = Field(16, gt=0, description="of each adapter's two factors")
    alpha: float = Field(32, gt=0, description="the adapter's output is scaled by alpha / rank")
    targets: str | tuple[str, ...] = Field("all-linear", description="names of the linear layers; all-linear: all but the output head")

    @contextmanager
    def prepared(self, base: PreTrainedModel, seed: int) -> Iterator[PreTrainedModel]:
        """The base with an adapter inside; only the adapter is trained."""
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        config = import_peft().LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets, task_type="CAUSAL_LM")
        with adapted(base, config, seed) as model:
            yield cast(PreTrainedModel, model)
