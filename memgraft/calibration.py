"""Fitting the memory's addresses to a base model without training: seconds instead of GPU hours.

Queries are whitened projections of background hidden states on random directions, sub-keys are spherical k-means centroids
of background queries; the output scale is measured apart (`memgraft.effect`). Whitening plays the part of the query
normalisation without which slot use collapses (Lample et al. 2019 §4.4: 25.8 % → 80.3 % of slots used).

Shape suffixes: P background tokens, D hidden size, Q half of key_dim, n sub-keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memgraft.memory import MemoryLayer

SHRINKAGE = 3.0  # times the median variance, added to each direction's before whitening: full whitening reads noise


def whitening(hidden_PD: Tensor, kinds_P: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean (D,) and symmetric whitening matrix (D, D), fp32, of hidden states.

    Args:
        kinds_P: int64, equal for those of one kind: whitened is what varies within a kind. None: all that varies.
    """
    hidden = hidden_PD.double()
    mean = hidden.mean(0)
    centred = hidden - mean
    if kinds_P is not None:
        centred = _within(centred, kinds_P)
    covariance = centred.T @ centred / len(centred)
    variances, directions = torch.linalg.eigh(covariance)
    # Few outlying tokens hold most of the variance in some directions, so the typical direction sets the floor.
    floor = SHRINKAGE * variances.clamp_min(0).median().clamp_min(1e-12)
    matrix = directions * (variances.clamp_min(0) + floor).rsqrt() @ directions.T
    return mean.float(), matrix.float()


def _within(hidden_PD: Tensor, kinds_P: Tensor) -> Tensor:
    """How far those of a kind are from its mean, without those that are alone; all as they are where too few are left."""
    _, kind, count = kinds_P.unique(return_inverse=True, return_counts=True)
    several = count[kind] > 1
    if int(several.sum()) - int((count > 1).sum()) < hidden_PD.shape[1]:
        return hidden_PD
    means: Tensor = hidden_PD.new_zeros(len(count), hidden_PD.shape[1]).index_add_(0, kind, hidden_PD) / count[:, None]
    return (hidden_PD - means[kind])[several]


def random_directions(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) random directions, orthonormal as far as `rows` allows."""
    blocks = []
    while columns > 0:
        block = torch.linalg.qr(torch.randn(rows, min(rows, columns), generator=generator)).Q
        blocks.append(block)
        columns -= block.shape[1]
    return torch.cat(blocks, dim=1)


def spherical_k_means(points_PQ: Tensor, clusters: int, generator: torch.Generator, iterations: int = 10) -> Tensor:
    """Unit centroids (clusters, Q) of unit points under cosine similarity; an empty cluster restarts at a random point."""
    points = F.normalize(points_PQ, dim=-1)

    def sample(count: int) -> Tensor:
        if count <= len(points):
            return points[torch.randperm(len(points), generator=generator)[:count]]
        chosen = points[torch.randint(len(points), (count,), generator=generator)]
        return F.normalize(chosen + 0.3 * F.normalize(torch.randn(chosen.shape, generator=generator), dim=-1), dim=-1)

    centroids = sample(clusters)
    if len(points) < 2 * clusters:
        return centroids
    for _ in range(iterations):
        nearest = (points @ centroids.T).argmax(-1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        empty = torch.bincount(nearest, minlength=clusters) == 0
        centroids = F.normalize(sums, dim=-1)
        if bool(empty.any()):
            centroids[empty] = sample(int(empty.sum()))
    return centroids


def aim(memory: MemoryLayer, hidden_PD: Tensor, generator: torch.Generator, kinds_P: Tensor | None = None) -> None:
    """Set a memory layer's projection alone; see `calibrate`."""
    config = memory.config
    mean, whiten = whitening(hidden_PD, None if kinds_P is None else kinds_P.cpu())
    directions = random_directions(config.hidden_size, config.heads * config.key_dim, generator)
    memory.query_mean.copy_(mean)
    memory.query_projection.copy_(whiten @ directions)


def calibrate(memory: MemoryLayer, hidden_PD: Tensor, *, seed: int, max_points: int = 32_768, kinds_P: Tensor | None = None) -> None:
    """Set a memory layer's projections and sub-keys from background hidden states that enter its block.

    Args:
        hidden_PD: hidden states of background tokens; documents' first tokens, which often carry outlying states, left out.
        seed: of directions, k-means starts and the subsample of at most `max_points` tokens that k-means sees.
        kinds_P: see `whitening`.
    """
    config = memory.config
    generator = torch.Generator().manual_seed(seed)
    hidden = hidden_PD.float().cpu()
    aim(memory, hidden, generator, kinds_P)
    if len(hidden) > max_points:
        hidden = hidden[torch.randperm(len(hidden), generator=generator)[:max_points]]
    device = memory.sub_keys.device
    queries = torch.cat([memory.queries(part.to(device)).cpu() for part in hidden.split(4096)])  # (P, H, 2, Q)
    for head in range(config.heads):
        for half in range(2):
            memory.sub_keys[head, half] = spherical_k_means(queries[:, head, half], config.sub_keys, generator).to(device)
    if config.gate == "swilu":
        bound = config.hidden_size**-0.5
        memory.gate_in.copy_((torch.rand(memory.gate_in.shape, generator=generator) * 2 - 1) * bound)
