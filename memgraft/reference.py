"""The slow, obvious version of the memory layer, over a dense table: the oracle of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from memgraft.memory import Address, MemoryLayer


def brute_force_top_k(scores_1: Tensor, scores_2: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Best top_k of all n² slots, one token at a time; ties by the ranks of the halves. Shapes as `product_key_top_k`."""
    n = scores_1.shape[-1]
    flat_1, flat_2 = scores_1.reshape(-1, n).tolist(), scores_2.reshape(-1, n).tolist()
    all_scores, all_slots = [], []
    for first, second in zip(flat_1, flat_2, strict=True):
        rank_1 = {i: r for r, i in enumerate(sorted(range(n), key=lambda i: (-first[i], i)))}
        rank_2 = {i: r for r, i in enumerate(sorted(range(n), key=lambda i: (-second[i], i)))}
        sums = {(i, j): float(torch.tensor(first[i]) + torch.tensor(second[j])) for i in range(n) for j in range(n)}
        best = sorted(sums, key=lambda pair: (-sums[pair], rank_1[pair[0]], rank_2[pair[1]]))[:top_k]
        all_scores.append([sums[pair] for pair in best])
        all_slots.append([i * n + j for i, j in best])
    shape = (*scores_1.shape[:-1], top_k)
    return torch.tensor(all_scores).view(shape), torch.tensor(all_slots).view(shape)


def dense_read(address: Address, table_NV: Tensor) -> Tensor:
    """Σ_heads Σ_k weight · V[slot] over a dense table (N, V), differentiable in weights and table: (T, V)."""
    return (address.weights[..., None] * table_NV[address.slots]).sum((1, 2))


def dense_forward(layer: MemoryLayer, x_TD: Tensor, table_NV: Tensor) -> Tensor:
    """What `layer` adds to x (T, D), with its formulas written out over a dense table; differentiable in x and table."""
    config = layer.config
    outputs = []
    for x in x_TD.float():
        y = torch.zeros(table_NV.shape[1])
        for head in range(config.heads):
            query = ((x - layer.query_mean) @ layer.query_projection).view(config.heads, 2, -1)[head]
            if config.qk_norm:
                query = query / query.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            keys_1, keys_2 = layer.sub_keys[head]
            scores_1, scores_2 = keys_1 @ query[0], keys_2 @ query[1]
            slots = brute_force_top_k(scores_1[None], scores_2[None], config.top_k)[1][0]
            scores = scores_1[slots // config.sub_keys] + scores_2[slots % config.sub_keys]
            weights = (scores * config.softmax_scale).softmax(-1) / config.heads**0.5
            y = y + weights @ table_NV[slots]
        if layer.threshold > 0:
            length = y.norm()
            y = y / length * (length - layer.threshold) if length > layer.threshold else y * 0
        out = y * layer.scale
        if config.gate == "swilu":
            out = (out * torch.nn.functional.silu(x @ layer.gate_in)) @ layer.gate_out
        outputs.append(out)
    return torch.stack(outputs).to(x_TD.dtype)
