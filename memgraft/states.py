"""Hidden states of whole texts, computed together with the memory off.

Shape suffixes: T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memgraft.blocks import hidden_states_before
from memgraft.probes.language_model import evaluating

if TYPE_CHECKING:
    from memgraft.grafted import GraftedModel

BATCH = 16  # texts that are computed together


def batches_of(parts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Which documents are computed together: those of about one length."""
    order = sorted(range(len(parts)), key=lambda index: len(parts[index]))
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def background_states(grafted: GraftedModel, layer: int, parts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Hidden states (T, D) that enter block `layer` for each document, computed with the memory off, in the order given."""
    states: list[Tensor | None] = [None] * len(parts)
    for chosen in batches_of(parts):
        width = max(len(parts[i]) for i in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.int64)
        mask = torch.zeros(len(chosen), width, dtype=torch.bool)
        for row, i in enumerate(chosen):
            ids[row, : len(parts[i])] = torch.tensor(parts[i])
            mask[row, : len(parts[i])] = True
        with grafted.without_memory(), evaluating(grafted.base):
            hidden = hidden_states_before(
                grafted.base, grafted.blocks, layer, input_ids=ids.to(grafted.device), attention_mask=mask.to(grafted.device)
            )
        for row, i in enumerate(chosen):
            states[i] = hidden[row, : len(parts[i])].cpu()
    return [state for state in states if state is not None]
