"""Listening to the memory layers of a pass: what each token read, and the gradient at each read.

Counts are promised once per token and optimizer step. A pass may be cut into micro-batches, padded, or recomputed by activation
checkpointing; the recorder keeps non-padding tokens of the first computation only.

Shape suffixes: T tokens that may be written, C tokens of context, H heads, K top-k, V value width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from memgraft.config import ANSWERS
from memgraft.grafted import GraftedModel
from memgraft.memory import Address


@dataclass
class Read:
    """One layer's read in one pass."""

    address: Address  # (T, H, K) of the tokens that may be written
    context: Address  # (C, H, K) of those that only lead up to them
    gradient: Tensor | None = None  # (T, V) fp32, dL/dy; None where nothing reached the read


class Recorder:
    """Collects the reads of passes, per value table."""

    def __init__(self) -> None:
        self.reads: dict[str, list[Read]] = {}

    def of_table(self, model: GraftedModel, table: str) -> tuple[Address, Tensor]:
        """All reads of one value table, tokens concatenated: address and gradient (T, V), zero where none arrived."""
        reads = self.reads[table]
        address = _concatenated([read.address for read in reads])
        width = model.config.hidden_size
        gradients = [
            read.gradient if read.gradient is not None else address.weights.new_zeros(len(read.address.slots), width) for read in reads
        ]
        return address, torch.cat(gradients)

    def context_of(self, table: str) -> Address:
        """What the context read of one value table, (C, H, K), tokens concatenated."""
        return _concatenated([read.context for read in self.reads[table]])


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
        scope: number of the lesson whose reads are wanted, and so only the tokens that read it; None: all that memory layers read.
    """
    kept = mask.flatten()
    leading = torch.zeros_like(kept) if context is None else context.flatten()
    recorded: dict[int, Read] = {}  # by layer, of which several may read one table

    def reading(tokens: Tensor) -> Tensor:
        if scope is None:
            return tokens
        open_BT = model.opened.get(scope)
        return torch.zeros_like(tokens) if open_BT is None else tokens & open_BT.flatten()

    def answering(tokens: Tensor) -> Tensor:
        return tokens & (anchors() >= 0)

    def anchors() -> Tensor:
        assert scope is not None
        at = model.answered.get(scope)
        return torch.full_like(kept, -1, dtype=torch.int64) if at is None else at.flatten()

    def listen(layer: int, table: str, address: Address, y_TV: Tensor, counts: Callable[[Tensor], Tensor]) -> None:
        if layer not in recorded:
            weights = address.weights.detach()
            taught, before = (Address(address.slots[tokens], weights[tokens]) for tokens in (counts(kept), counts(leading)))
            recorded[layer] = Read(taught, before)
            recorder.reads.setdefault(table, []).append(recorded[layer])
        if y_TV.requires_grad:
            # Under checkpointing the read runs twice; whichever of the two the backward pass goes through calls this.
            read = recorded[layer]

            def keep(gradient: Tensor) -> None:
                read.gradient = gradient.flatten(0, -2)[counts(kept)].float()

            y_TV.register_hook(keep)

    def listen_to_answers(y_BTV: Tensor) -> None:
        slots = anchors()[:, None, None]  # read in full, as if by one head of one slot
        listen(-1, ANSWERS, Address(slots, torch.ones_like(slots, dtype=torch.float32)), y_BTV, answering)

    if scope is not None and model.scope(scope).cues.anchors is not None:
        assert model.answers is not None
        model.answers.on_read = listen_to_answers
    else:
        for i in range(len(model.memories)):
            table = model.config.table_of(i)
            model.layer(i).on_read = lambda address, y, i=i, table=table: listen(i, table, address, y, reading)
    try:
        yield
    finally:
        for i in range(len(model.memories)):
            model.layer(i).on_read = None
        if model.answers is not None:
            model.answers.on_read = None
