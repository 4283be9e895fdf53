"""The memory layer: product-key addresses, a virtual value table, and the read.

Sources: product keys, Lample et al. 2019 (arXiv 1907.05242); the layer and its stabilisers, Berges et al. 2024
(arXiv 2412.09764) §3; input gate, Lin et al. 2025 (arXiv 2510.15103). `memgraft.reference` holds the dense twin.

Shape suffixes: T tokens (any leading shape, flattened), D hidden size, H heads, K top-k, Q half of key_dim, n sub-keys of a
codebook, C candidate pairs, R written rows, V value width. Slot id = i₁·n + i₂. Addresses and reads are fp32 whatever
the base model's dtype, also under `torch.autocast`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memgraft.commits import Rows
from memgraft.config import MemoryConfig
from memgraft.precision import in_own_precision


class Address(NamedTuple):
    """The slots that tokens read, and with what weight."""

    slots: Tensor  # (T, H, K) int64, best first within a head
    weights: Tensor  # (T, H, K) fp32; softmax over a head's K slots, divided by √H


@lru_cache(maxsize=8)
def candidate_pairs(top_k: int) -> tuple[tuple[int, int], ...]:
    """Pairs of half ranks (r₁, r₂), counted from 0, that can be among the best top_k sums: (r₁+1)(r₂+1) ≤ top_k.

    In lexicographic order, which is the tie rule: any other pair has at least top_k pairs before it.
    """
    return tuple((r1, r2) for r1 in range(top_k) for r2 in range(top_k // (r1 + 1)))


def top_sub_keys(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Best top_k scores (…, n) and their indices, best first; ties by the lower index."""
    values, indices = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :top_k], indices[..., :top_k]


def product_key_top_k(scores_1: Tensor, scores_2: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Exact best top_k of all n² sums of two halves' scores (Lample et al. 2019, §3.1).

    Args:
        scores_1, scores_2: (…, n) scores of each half of the query against its codebook.
        top_k: at most n.

    Returns:
        scores (…, top_k), best first, and slot ids (…, top_k); ties by the ranks of the halves, first half first.
    """
    sub_keys = scores_1.shape[-1]
    best_1, index_1 = top_sub_keys(scores_1, top_k)
    best_2, index_2 = top_sub_keys(scores_2, top_k)
    rank_1, rank_2 = torch.tensor(candidate_pairs(top_k), device=scores_1.device).unbind(-1)  # (C,)
    sums = best_1[..., rank_1] + best_2[..., rank_2]  # (…, C)
    scores, chosen = top_sub_keys(sums, top_k)
    slots = index_1[..., rank_1].gather(-1, chosen) * sub_keys + index_2[..., rank_2].gather(-1, chosen)
    return scores, slots


def soft_threshold(y_TV: Tensor, threshold: float) -> Tensor:
    """Each read shortened by `threshold`, and exactly zero where it is no longer than that: y · max(0, 1 − θ/‖y‖).

    A token that belongs to no lesson reads stray rows of many, whose sum is short; what a lesson meant for a token is long.
    The proximal step of the group lasso (Yuan & Lin 2006), a token's read being the group. 0 leaves every bit as it is.
    """
    if threshold == 0:
        return y_TV
    length = y_TV.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(y_TV.dtype).tiny)
    short: Tensor = y_TV * (1 - threshold / length).clamp_min(0)
    return short


class ValueTable(nn.Module):
    """A value table of which only the written rows exist; every other row is zero.

    `slots` (R,) sorted ids; `values` (R, V) fp32.
    """

    slots: Tensor
    values: Tensor

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.register_buffer("slots", rows.slots.clone(), persistent=False)
        self.register_buffer("values", rows.values.clone(), persistent=False)

    @property
    def rows(self) -> Rows:
        """A copy of the written rows, on the CPU."""
        return Rows(self.slots.cpu().clone(), self.values.cpu().clone())

    def assign(self, rows: Rows) -> None:
        """Replace all written rows."""
        self.slots = rows.slots.to(self.slots.device, copy=True)
        self.values = rows.values.to(self.values.device, copy=True)

    def find(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Row index of each slot id (clamped into range) and whether that row is written."""
        if not len(self.slots):
            return torch.zeros_like(slots), torch.zeros_like(slots, dtype=torch.bool)
        index = torch.searchsorted(self.slots, slots).clamp_(max=len(self.slots) - 1)
        return index, self.slots[index] == slots

    def allocate(self, slots: Tensor) -> Tensor:
        """Make sure that rows for these ids (sorted, unique) exist, new ones zero; returns their row indices."""
        known = self.find(slots)[1]
        if not bool(known.all()):
            fresh = slots[~known]
            merged, order = torch.cat([self.slots, fresh]).sort()
            self.values = torch.cat([self.values, self.values.new_zeros(len(fresh), self.values.shape[1])])[order]
            self.slots = merged
        return torch.searchsorted(self.slots, slots)

    def read(self, address: Address) -> Tensor:
        """Weighted sum of the rows at an address: (T, V) fp32, differentiable in weights and values.

        Only written rows are touched, so the cost follows what was taught, not the number of slots.
        """
        tokens = len(address.slots)
        index, written = self.find(address.slots.flatten(1))  # (T, H·K)
        if not len(self.slots):
            return self.values.new_zeros(tokens, self.values.shape[1])
        per_token = written.sum(-1)
        offsets = per_token.cumsum(0) - per_token
        return F.embedding_bag(
            index[written],
            self.values,
            offsets,
            mode="sum",
            per_sample_weights=address.weights.flatten(1)[written],
        )


class Tables(nn.ModuleDict):
    """Value tables by name."""

    def __init__(self, names: Iterable[str], width: int) -> None:
        super().__init__({name: ValueTable(Rows.empty(width)) for name in names})
        self.width = width

    def table(self, name: str) -> ValueTable:
        """A value table by name."""
        table = self[name]
        assert isinstance(table, ValueTable)
        return table

    def rows(self) -> dict[str, Rows]:
        """A copy of all written rows, by table."""
        return {name: self.table(name).rows for name in self}

    def assign(self, rows: Mapping[str, Rows]) -> None:
        """Make these the written rows; tables that are not named become empty."""
        for name in self:
            self.table(name).assign(rows.get(name, Rows.empty(self.width)))


class MemoryLayer(nn.Module):
    """One memory layer: x ↦ scale · y, optionally gated; added to x by the graft. y = Σ_heads Σ_k weight · V[slot].

    Reads of its own table are soft-thresholded; tables of lessons that are open for some tokens only are read there, in full. With zero
    rows the output is exactly zero. `on_read` is called with (address, y), y (T, V) being the sum of all reads before scale and gate,
    on every pass; teaching listens there, and sets `threshold` to 0 meanwhile.
    """

    query_mean: Tensor
    query_projection: Tensor
    sub_keys: Tensor
    scale: Tensor
    gate_in: Tensor
    gate_out: Tensor

    def __init__(self, config: MemoryConfig, table: ValueTable) -> None:
        super().__init__()
        self.config = config
        self.table = table
        self.threshold = config.threshold
        half = config.key_dim // 2
        self.register_buffer("query_mean", torch.zeros(config.hidden_size))  # (D,)
        self.register_buffer("query_projection", torch.zeros(config.hidden_size, config.heads * config.key_dim))
        self.register_buffer("sub_keys", torch.zeros(config.heads, 2, config.sub_keys, half))  # (H, 2, n, Q)
        self.register_buffer("scale", torch.ones(()))
        if config.gate == "swilu":
            bound = config.hidden_size**-0.5
            self.register_buffer(
                "gate_in", (torch.rand(config.hidden_size, config.hidden_size, generator=torch.Generator().manual_seed(0)) * 2 - 1) * bound
            )
            self.register_buffer("gate_out", torch.eye(config.hidden_size))
        self.on_read: Callable[[Address, Tensor], None] | None = None

    def queries(self, x_TD: Tensor) -> Tensor:
        """Half queries (T, H, 2, Q), of unit length under `qk_norm`."""
        with in_own_precision(x_TD):
            flat = (x_TD.float() - self.query_mean) @ self.query_projection
        halves = flat.view(len(x_TD), self.config.heads, 2, self.config.key_dim // 2)
        return F.normalize(halves, dim=-1) if self.config.qk_norm else halves

    def address(self, x_TD: Tensor) -> Address:
        """The slots that each token reads, with softmax weights (fp32)."""
        queries = self.queries(x_TD)
        with in_own_precision(x_TD):
            scores_TH2n = torch.einsum("thaq,hanq->than", queries, self.sub_keys)
        scores, slots = product_key_top_k(scores_TH2n[:, :, 0], scores_TH2n[:, :, 1], self.config.top_k)
        weights = (scores * self.config.softmax_scale).softmax(-1) * self.config.heads**-0.5
        return Address(slots, weights)

    def forward(self, x: Tensor, scoped: Sequence[tuple[ValueTable, Tensor]] = ()) -> Tensor:
        """What the memory adds to hidden states x (…, D), in x's dtype.

        Args:
            scoped: tables beside its own, each with the tokens (…) that read it.
        """
        x_TD = x.reshape(-1, x.shape[-1])
        address = self.address(x_TD)
        y_TV = soft_threshold(self.table.read(address), self.threshold)
        for table, tokens in scoped:
            y_TV = y_TV + table.read(address) * tokens.reshape(-1, 1)
        if self.on_read is not None:
            if torch.is_grad_enabled() and not y_TV.requires_grad:
                y_TV.requires_grad_(True)
            self.on_read(address, y_TV)
        out = y_TV * self.scale
        if self.config.gate == "swilu":
            with in_own_precision(x_TD):
                out = (out * F.silu(x_TD.float() @ self.gate_in)) @ self.gate_out
        return out.to(x.dtype).view_as(x)
