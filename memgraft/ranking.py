"""Which slots may change in a step: scores of a batch's accesses against background usage, and the best t of them.

    tf      c(i) / Σ_j c(j)
    tfidf   tf(i) · log((|B|+1) / (df(i)+1))                         Lin et al. 2025 §3.2
    kl      p(i) · log((p(i)+ε) / (p_bg(i)+ε)), ε = 1e-8             Goyal et al. 2026 (background by document frequency),
                                                                      Gupta et al. 2026 (by accesses)
    all     every accessed slot          random   control: accessed slots in seeded random order

c(i) counts accesses over all non-padding tokens of the whole (accumulated) batch. Slots that score 0 or less are never
chosen, and ties break by slot id, so runs repeat exactly. U = distinct slots that the batch reads.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from memgraft.usage import Usage

Ranking = Literal["tfidf", "kl", "kl-accesses", "tf", "all", "random"]
RANKINGS: tuple[str, ...] = get_args(Ranking)
KL_EPSILON = 1e-8


def score(ranking: Ranking, slots: Tensor, counts: Tensor, usage: Usage, table_slots: int, seed: int = 0) -> Tensor:
    """Scores (U,) fp64 of the slots that a batch reads.

    Args:
        slots: (U,) sorted unique slot ids.
        counts: (U,) accesses of each.
        usage: background statistics of the table.
        table_slots: N, over which the background distribution of `kl` is smoothed.
        seed: order of `random`.
    """
    term_frequency = counts.double() / counts.sum()
    if ranking == "tf":
        return term_frequency
    if ranking == "all":
        return torch.ones(len(slots), dtype=torch.float64)
    if ranking == "random":
        generator = torch.Generator().manual_seed(seed)
        return 1.0 - torch.rand(len(slots), dtype=torch.float64, generator=generator)
    if ranking == "tfidf":
        document_frequency = usage.document_frequency_of(slots).double()
        return term_frequency * torch.log((usage.batches + 1) / (document_frequency + 1))
    if ranking in ("kl", "kl-accesses"):
        per_slot, at = (
            (usage.document_frequency, usage.document_frequency_of(slots))
            if ranking == "kl"
            else (usage.accesses, usage.accesses_of(slots))
        )
        background = (at.double() + 1) / (per_slot.sum().double() + table_slots)
        return term_frequency * torch.log((term_frequency + KL_EPSILON) / (background + KL_EPSILON))
    raise ValueError(f"unknown ranking {ranking!r}; expected one of {', '.join(RANKINGS)}")


def choose(slots: Tensor, scores: Tensor, t: int | None) -> Tensor:
    """The best t slots with a positive score, as sorted ids; ties by the lower id. `t=None` takes all of them."""
    positive = scores > 0
    slots, scores = slots[positive], scores[positive]
    if t is not None and t < len(slots):
        slots = slots[scores.sort(descending=True, stable=True).indices[:t]]
    return slots.sort().values
