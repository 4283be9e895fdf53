"""Listening to the memory layers of a pass: what each token read, and the gradient at each read.

Counts are promised once per token and optimizer step. A pass may be cut into micro-batches, padded, or recomputed by activation
checkpointing; the recorder keeps non-padding tokens of the first computation only.

Shape suffixes: T tokens that may be written, C tokens of context, H heads, K top-k, V value width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from memgraft.grafted import GraftedModel
from memgraft.memory import Address


@dataclass
class Read:
    """One memory layer's read in one pass."""

    address: Address  # (T, H, K) of the tokens that may be written
    context: Address  # (C, H, K) of those that only lead up to them
    gradient: Tensor | None = None  # (T, V) fp32, dL/dy; None where nothing reached the read


class Recorder:
    """Collects the reads of passes, per memory layer."""

    def __init__(self, layers: int) -> None:
        self.reads: list[list[Read]] = [[] for _ in range(layers)]

    def of_table(self, model: GraftedModel, table: str) -> tuple[Address, Tensor]:
        """All reads of one value table, tokens concatenated: address and gradient (T, V), zero where none arrived."""
        reads = self._reads(model, table)
        address = _concatenated([read.address for read in reads])
        width = model.table(table).values.shape[1]
        gradients = [
            read.gradient if read.gradient is not None else address.weights.new_zeros(len(read.address.slots), width) for read in reads
        ]
        return address, torch.cat(gradients)

    def context_of(self, model: GraftedModel, table: str) -> Address:
        """What the context read of one value table, (C, H, K), tokens concatenated."""
        return _concatenated([read.context for read in self._reads(model, table)])

    def _reads(self, model: GraftedModel, table: str) -> list[Read]:
        return [read for i, layer in enumerate(self.reads) if model.config.table_of(i) == table for read in layer]


def _concatenated(addresses: Sequence[Address]) -> Address:
    return Address(torch.cat([address.slots for address in addresses]), torch.cat([address.weights for address in addresses]))


@contextmanager
def recording(
    model: GraftedModel, recorder: Recorder, mask: Tensor, context: Tensor | None = None, scope: int | None = None
) -> Iterator[None]:
    """Within, one pass (and its backward pass) is recorded.

    Args:
        mask: (B, T) bool, which tokens count: not padding, nor context that only leads up to what is taught.
        context: (B, T) bool, that context, of which only the addresses are kept; none by default.
        scope: number of the lesson whose reads are wanted, and so only the tokens at which it is open; None: all tokens.
    """
    kept = mask.flatten()
    leading = torch.zeros_like(kept) if context is None else context.flatten()
    recorded: set[int] = set()

    def opened(tokens: Tensor) -> Tensor:
        if scope is None:
            return tokens
        open_BT = model.opened.get(scope)
        return torch.zeros_like(tokens) if open_BT is None else tokens & open_BT.flatten()

    def listen(layer: int, address: Address, y_TV: Tensor) -> None:
        if layer not in recorded:
            recorded.add(layer)
            weights = address.weights.detach()
            taught, before = (Address(address.slots[tokens], weights[tokens]) for tokens in (opened(kept), opened(leading)))
            recorder.reads[layer].append(Read(taught, before))
        if y_TV.requires_grad:
            # Under checkpointing the read runs twice; whichever of the two the backward pass goes through calls this.
            read = recorder.reads[layer][-1]

            def keep(gradient: Tensor) -> None:
                read.gradient = gradient[opened(kept)].float()

            y_TV.register_hook(keep)

    for i in range(len(model.memories)):
        model.layer(i).on_read = lambda address, y, i=i: listen(i, address, y)
    try:
        yield
    finally:
        for i in range(len(model.memories)):
            model.layer(i).on_read = None
