"""What background tokens read together: the covariance that a write must spare.

A slot's load says how much the background reads it; that many slots are read by the same tokens it does not say. What is written
to such slots adds up in those tokens' reads, so a write that counts loads alone disturbs them more than it knows. MEMIT spares the
whole covariance of a layer's inputs (Meng et al. 2023, arXiv 2210.07229, §4.2); here an input is what a token reads, which is
sparse, so the covariance is made when it is needed, for the slots that are about to change.

The reads are computed from the background's text, in seconds, and not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from memgraft.grafting import background_states
from memgraft.memory import Address

if TYPE_CHECKING:
    from memgraft.grafted import GraftedModel


class BackgroundReads:
    """The slots that each background token reads from one value table, with their weights."""

    def __init__(self, addresses: Sequence[Address], table_slots: int) -> None:
        slots = torch.cat([address.slots.cpu().flatten(1) for address in addresses])
        weights = torch.cat([address.weights.detach().cpu().float().flatten(1) for address in addresses])
        starts = np.arange(len(slots) + 1) * slots.shape[1]
        by_token = csr_array((weights.numpy().ravel(), slots.numpy().ravel(), starts), shape=(len(slots), table_slots))
        by_token.sum_duplicates()  # a slot read by several heads
        self._reads = by_token.tocsc()

    def covariance_of(self, slots: Tensor) -> Tensor:
        """(S, S) fp32 of the slots given: Σ over background tokens of weight · weight, per token, times the number of slots.

        Not centred: to spare is what is read, not how it varies. Its diagonal is the slots' load (`Usage.load_of`) where no token
        reads a slot with two heads, and more where one does.
        """
        part = self._reads[:, slots.cpu().numpy()]
        products = (part.T @ part).toarray() * (self._reads.shape[1] / self._reads.shape[0])
        return torch.from_numpy(products).to(slots.device)


def background_reads(model: GraftedModel) -> dict[str, BackgroundReads]:
    """What the model's background reads, per value table; computed once per model. Empty for a model without background text."""
    if model.background is None:
        return {}
    if model.background_reads is None:
        parts, _ = model.background.split(model.tokenizer)
        addresses: dict[str, list[Address]] = {name: [] for name in model.config.tables}
        for index, layer in enumerate(model.config.layers):
            for hidden in background_states(model, layer, parts):
                addresses[model.config.table_of(index)].append(model.layer(index).address(hidden.to(model.device)))
        model.background_reads = {name: BackgroundReads(found, model.config.slots) for name, found in addresses.items()}
    return model.background_reads
