"""The optimizers of the rivals: AdamW, and the plain SGD that Lin et al. 2025 (table 2) give them too. Learning rates are constant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from memgraft.config import Config


class AdamW(Config):
    """AdamW (Loshchilov and Hutter 2019). Matrices decay, vectors (norms, biases) don't, and each step is
    one kernel, as in `transformers.Trainer`."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0, description="learning rate")
    weight_decay: float = Field(0.1, ge=0, description="of the trained matrices")

    def build(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer of these weights."""
        trained = list(weights)
        groups = [
            {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr, fused=True)


class SGD(Config):
    """Gradient descent without momentum or decay."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(gt=0, description="learning rate")

    def build(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer of these weights."""
        return torch.optim.SGD(list(weights), lr=self.lr)


Optimizer = Annotated[AdamW | SGD, Field(discriminator="name")]
