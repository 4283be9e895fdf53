"""Replay: background documents that are learned again in every step, so that they are not forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from memgraft.encoding import TokenBatch
from memgraft.errors import TeachingError
from memgraft.probes.language_model import padded


def replay_documents(documents: Sequence[Sequence[int]], per_step: int, seed: int) -> Callable[[int], TokenBatch]:
    """A function from a step, counted from 0, to its `per_step` documents; all are used, in shuffled order, before one returns.

    Args:
        documents: token ids; every token but a document's first is a target.

    Raises:
        TeachingError: fewer documents than a step takes.
    """
    if len(documents) < per_step:
        raise TeachingError(f"replay takes {per_step} background documents a step, there are {len(documents)}")
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()

    def batch(step: int) -> TokenBatch:
        chosen = [documents[order[(step * per_step + i) % len(order)]] for i in range(per_step)]
        ids, mask = padded(chosen, 0)
        targets = mask.bool()
        targets[:, 0] = False
        return TokenBatch("background", ids, mask.bool(), targets)

    return batch
