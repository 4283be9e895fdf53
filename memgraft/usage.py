"""Background statistics: how often the rest of the world reads each slot.

Collected once over text that stands for what must be preserved (Lin et al. 2025 §3.2: document frequencies over |B| = 1,000
batches). Only slots that were read are kept, so the size follows the background, not the number of slots.

Shape suffixes: M slots with any use; T, H, K as in `memgraft.memory`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from memgraft.memory import Address


@dataclass(frozen=True)
class Usage:
    """Use of one value table by the background."""

    slots: Tensor  # (M,) int64, sorted: slots read at least once
    document_frequency: Tensor  # (M,) int64: background batches that read the slot
    accesses: Tensor  # (M,) int64: reads, over tokens and heads
    energy: Tensor  # (M,) fp32: Σ over reads of weight²
    batches: int
    tokens: int

    @classmethod
    def empty(cls) -> Usage:
        none = torch.zeros(0, dtype=torch.int64)
        return cls(none, none, none, torch.zeros(0), 0, 0)

    def _at(self, values: Tensor, slots: Tensor) -> Tensor:
        if not len(self.slots):
            return torch.zeros(len(slots), dtype=values.dtype)
        index = torch.searchsorted(self.slots, slots).clamp_(max=len(self.slots) - 1)
        return torch.where(self.slots[index] == slots, values[index], torch.zeros((), dtype=values.dtype))

    def document_frequency_of(self, slots: Tensor) -> Tensor:
        """(U,) background batches that read each slot."""
        return self._at(self.document_frequency, slots)

    def accesses_of(self, slots: Tensor) -> Tensor:
        """(U,) background reads of each slot."""
        return self._at(self.accesses, slots)

    def load_of(self, slots: Tensor, table_slots: int) -> Tensor:
        """(U,) background read energy of each slot, Σ weight² per background token, times the number of slots.

        About the mean energy of a token for a slot of average use, whatever the sizes of background and table.
        """
        return self._at(self.energy, slots) * (table_slots / max(self.tokens, 1))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """As named tensors, for the store."""
        return {
            f"{prefix}.slots": self.slots,
            f"{prefix}.document_frequency": self.document_frequency,
            f"{prefix}.accesses": self.accesses,
            f"{prefix}.energy": self.energy,
            f"{prefix}.size": torch.tensor([self.batches, self.tokens]),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], prefix: str) -> Usage:
        """The inverse of `tensors`. ValueError where they are no usage."""
        kinds = {"slots": torch.int64, "document_frequency": torch.int64, "accesses": torch.int64, "energy": torch.float32}
        parts: dict[str, Tensor] = {}
        for name, kind in kinds.items():
            part = tensors.get(f"{prefix}.{name}")
            if part is None or part.dtype != kind or part.dim() != 1 or len(part) != len(parts.get("slots", part)):
                raise ValueError(f"{prefix}.{name}: expected {kind} of shape (M,), a value for each slot")
            parts[name] = part
        if bool((parts["slots"][1:] <= parts["slots"][:-1]).any()):
            raise ValueError(f"{prefix}.slots: must be strictly increasing")
        size = tensors.get(f"{prefix}.size")
        if size is None or size.dtype != torch.int64 or size.shape != (2,):
            raise ValueError(f"{prefix}.size: expected the numbers of batches and tokens")
        batches, tokens = size.tolist()
        return cls(**parts, batches=batches, tokens=tokens)


def count_accesses(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted unique slots and how often each occurs in an address (any shape); padding must be gone already."""
    unique, counts = slots.flatten().unique(return_counts=True)
    return unique, counts


class UsageCounter:
    """Adds up usage over background batches. A batch is one sequence or document, the unit of `document_frequency`."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._documents: list[int] = []
        self._tokens = 0

    def add(self, address: Address, document: int) -> None:
        """Count the reads of one memory layer in a background batch; the address holds no padding tokens.

        Layers that share the table add theirs under the same `document` number: what they read together counts as one batch.
        """
        slots, inverse, counts = address.slots.cpu().flatten().unique(return_inverse=True, return_counts=True)
        squares = address.weights.detach().cpu().flatten().double().square()
        energy = torch.zeros(len(slots), dtype=torch.float64).index_add_(0, inverse, squares)
        self._parts.append((slots, counts, energy))
        self._documents.append(document)
        self._tokens += len(address.slots)

    def result(self) -> Usage:
        if not self._parts:
            return Usage.empty()
        slots, inverse = torch.cat([part[0] for part in self._parts]).unique(return_inverse=True)
        size = len(slots)
        documents, number = torch.tensor(self._documents).unique(return_inverse=True)
        reads = number.repeat_interleave(torch.tensor([len(part[0]) for part in self._parts])) * size + inverse
        document_frequency = torch.bincount(reads.unique() % size, minlength=size)
        accesses = torch.zeros(size, dtype=torch.int64).index_add_(0, inverse, torch.cat([part[1] for part in self._parts]))
        energy = torch.zeros(size, dtype=torch.float64).index_add_(0, inverse, torch.cat([part[2] for part in self._parts]))
        return Usage(slots, document_frequency, accesses, energy.float(), batches=len(documents), tokens=self._tokens)


def merge_taught(usage: Usage, lessons: Iterable[Tensor]) -> Usage:
    """Usage in which slots written by earlier lessons count as used by every background batch.

    Under `tfidf` such a slot scores 0, under `kl` its background share is the largest there is, and the least-interference
    writer meets at least the highest load of the background there: later lessons avoid it where they can.

    Args:
        lessons: for each earlier lesson, the sorted slots that it wrote in this table.
    """
    taught = list(lessons)
    if not taught:
        return usage
    written = torch.cat(taught).unique()
    slots = torch.cat([usage.slots, written]).unique()
    at = torch.searchsorted(slots, written)
    document_frequency = usage.document_frequency_of(slots)
    document_frequency[at] = usage.batches
    accesses = usage.accesses_of(slots)
    energy = usage._at(usage.energy, slots)
    if len(usage.slots):
        accesses[at] = accesses[at].clamp_min(int(usage.accesses.max()))
        energy[at] = energy[at].clamp_min(float(usage.energy.max()))
    return Usage(slots, document_frequency, accesses, energy, usage.batches, usage.tokens)
