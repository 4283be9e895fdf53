"""What a memory is made of. One frozen configuration; the command line and the store are views of it."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ANSWERS = "answers"  # the value table of lessons whose facts have anchors: the row of anchor i is slot i


class Config(BaseModel):
    """Base of all configurations: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def first_refusal(error: ValidationError) -> str:
    """The first thing that a configuration refuses, on one line: the field, what it takes, and what it was given."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    reason = "unknown setting" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
    if not place:
        return reason
    given = problem["input"]
    told = problem["type"] == "extra_forbidden" or "got" in reason or not isinstance(given, str | int | float)
    return f"{place}: {reason}" + ("" if told else f", got {given!r:.60}")


class MemoryConfig(Config):
    """Product-key memory layers (Lample et al. 2019; Berges et al. 2024) beside the blocks of a base model."""

    layers: tuple[int, ...] = Field(
        description="decoder blocks, counted from 0, in front of which a memory layer reads and adds to the residual stream"
    )
    answer_layer: int | None = Field(
        None,
        ge=0,
        description="decoder block, behind those, in front of which facts are read at their anchors; none: facts are read like all else",
    )
    hidden_size: int = Field(gt=0, description="width of the residual stream")
    slots: int = Field(65_536, gt=0, description="slots per value table, a square number: two codebooks of √slots sub-keys")
    top_k: int = Field(32, gt=0, description="slots that each head of a token reads")
    heads: int = Field(4, gt=0, description="independent addresses per token; heads share one value table")
    key_dim: int = Field(64, gt=0, description="width of a head's query; each half of it meets one codebook")
    softmax_scale: float = Field(20.0, gt=0, description="factor on the scores before the softmax over a head's top-k")
    qk_norm: bool = Field(True, description="half queries and sub-keys have unit length, so that scores are sums of two cosines")
    gate: Literal["none", "swilu"] = Field("none", description="input gate of Lin et al. 2025: W2ᵀ(y ⊙ silu(W1ᵀx))")
    threshold: float = Field(
        0.07,
        ge=0,
        description="for lessons that every text reads: reads no longer than this, in units of their scale, add nothing, longer ones "
        "lose as much; teaching reads without it",
    )
    shared_values: bool = Field(False, description="one value table for all memory layers (Berges et al. 2024)")
    mode: Literal["additive"] = Field("additive", description="how the memory joins the block")

    @model_validator(mode="after")
    def _consistent(self) -> MemoryConfig:
        if math.isqrt(self.slots) ** 2 != self.slots:
            near = round(math.sqrt(self.slots)) ** 2
            raise ValueError(f"slots must be a square number, got {self.slots}; the nearest is {near}")
        if self.top_k > self.sub_keys:
            raise ValueError(f"top_k = {self.top_k} exceeds the {self.sub_keys} sub-keys of a codebook (√slots)")
        if self.key_dim % 2:
            raise ValueError(f"key_dim must be even (two halves), got {self.key_dim}")
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or min(self.layers) < 0:
            raise ValueError(f"layers must be increasing, distinct and not negative, got {list(self.layers)}")
        if self.answer_layer is not None and self.answer_layer <= self.layers[-1]:
            raise ValueError(f"answer_layer must lie behind the memory layers {list(self.layers)}, got {self.answer_layer}")
        return self

    @property
    def sub_keys(self) -> int:
        """Sub-keys of one codebook, √slots."""
        return math.isqrt(self.slots)

    @property
    def query_dim(self) -> int:
        """Width of all heads' queries together."""
        return self.heads * self.key_dim

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the value tables: one, or one per memory layer."""
        return ("0",) if self.shared_values else tuple(str(i) for i in range(len(self.layers)))

    def table_of(self, layer_index: int) -> str:
        """The value table that the layer_index-th memory layer reads."""
        return "0" if self.shared_values else str(layer_index)
