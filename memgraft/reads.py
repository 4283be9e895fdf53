"""Listening to the memory layers of a pass: what each token read, and the gradient at each read.

Counts are promised once per token and optimizer step. A pass may be cut into micro-batches, padded, or recomputed by activation
checkpointing; the recorder keeps non-padding tokens of the first computation only.

Shape suffixes: T non-padding tokens, H heads, K top-k, V value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from memgraft.grafted import GraftedModel
from memgraft.memory import Address


@dataclass
class Read:
    """One memory layer's read in one pass."""

    address: Address  # (T, H, K)
    gradient: Tensor | None = None  # (T, V) fp32, dL/dy; None where nothing reached the read


class Recorder:
    """Collects the reads of passes, per memory layer."""

    def __init__(self, layers: int) -> None:
        self.reads: list[list[Read]] = [[] for _ in range(layers)]

    def of_table(self, model: GraftedModel, table: str) -> tuple[Address, Tensor]:
        """All reads of one value table, tokens concatenated: address and gradient (T, V), zero where none arrived."""
        reads = [read for i, layer in enumerate(self.reads) if model.config.table_of(i) == table for read in layer]
        slots = torch.cat([read.address.slots for read in reads])
        weights = torch.cat([read.address.weights for read in reads])
        width = model.table(table).values.shape[1]
        gradients = [read.gradient if read.gradient is not None else weights.new_zeros(len(read.address.slots), width) for read in reads]
        return Address(slots, weights), torch.cat(gradients)


@contextmanager
def recording(model: GraftedModel, recorder: Recorder, mask: Tensor) -> Iterator[None]:
    """Within, one pass (and its backward pass) is recorded.

    Args:
        mask: (B, T) bool, which tokens count: not padding, nor context that only leads up to what is taught.
    """
    kept = mask.flatten()
    recorded: set[int] = set()

    def listen(layer: int, address: Address, y_TV: Tensor) -> None:
        if layer not in recorded:
            recorded.add(layer)
            detached = Address(address.slots[kept], address.weights.detach()[kept])
            recorder.reads[layer].append(Read(detached))
        if y_TV.requires_grad:
            # Under checkpointing the read runs twice; whichever of the two the backward pass goes through calls this.
            read = recorder.reads[layer][-1]

            def keep(gradient: Tensor) -> None:
                read.gradient = gradient[kept].float()

            y_TV.register_hook(keep)

    for i in range(len(model.memories)):
        model.layer(i).on_read = lambda address, y, i=i: listen(i, address, y)
    try:
        yield
    finally:
        for i in range(len(model.memories)):
            model.layer(i).on_read = None
