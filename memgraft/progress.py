"""Where a lesson is: everything that its next step depends on, so that it can go on elsewhere and end in the same bits.

Shape suffixes: R rows, V value width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from memgraft.commits import Rows
from memgraft.cues import Cues
from memgraft.writers import Moments


@dataclass
class Progress:
    """The state of a lesson between two steps."""

    losses: list[list[float]]  # pass → loss of each batch, in data order; NaN where it was skipped or not taught yet
    batch_slots: dict[str, list[Tensor]]  # table → for each batch, the slots that it wrote
    moments: dict[str, Moments]
    rows: dict[str, Rows] | None = None  # as they are in this state; None: as they were before the lesson
    generator: Tensor | None = None  # the state of the order's generator before this pass
    turn: int = 0  # the pass, counted from 0
    place: int = 0  # batches of this pass that are done
    first_loss: float | None = None  # of the first step, before anything was written
    cues: Cues | None = None  # that open the lesson; None: every text reads it

    @classmethod
    def start(cls, batches: int, tables: Sequence[str], cues: Cues | None = None) -> Progress:
        """Before the first step."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls([], {name: [none] * batches for name in tables}, {name: Moments() for name in tables}, cues=cues)

    def begin(self, turn: int, generator: torch.Generator, batches: int) -> list[int]:
        """The batches of a pass that are still to be taught, in their order."""
        if turn == self.turn and self.generator is not None:  # gone on with
            generator.set_state(self.generator)
        else:
            self.turn, self.place = turn, 0
        if len(self.losses) == turn:
            self.losses.append([math.nan] * batches)
        self.generator = generator.get_state()
        order: list[int] = torch.randperm(batches, generator=generator).tolist()
        return order[self.place :]

    def add_loss(self, batch: int, loss: float) -> None:
        """The loss of the batch that is taught now."""
        self.losses[self.turn][batch] = loss
        if self.first_loss is None:
            self.first_loss = loss

    def last_loss(self, batch: int, since: int = 0) -> float:
        """The loss when the batch was last taught, in pass `since` or later; infinite where it was not."""
        return next((losses[batch] for losses in reversed(self.losses[since:]) if not math.isnan(losses[batch])), math.inf)

    def tensors(self) -> dict[str, Tensor]:
        """All but the numbers, as named tensors."""
        assert self.rows is not None
        assert self.generator is not None
        tensors = {"generator": self.generator, "losses": torch.tensor(self.losses, dtype=torch.float64)}
        for name, rows in self.rows.items():
            tensors[f"rows.{name}.slots"], tensors[f"rows.{name}.values"] = rows.slots, rows.values
        for name, parts in self.batch_slots.items():
            tensors[f"written.{name}"] = torch.cat(parts)
            tensors[f"written.{name}.counts"] = torch.tensor([len(part) for part in parts])
        for name, moments in self.moments.items():
            tensors |= {f"moments.{name}.{key}": tensor for key, tensor in moments.tensors().items()}
        if self.cues is not None:
            tensors |= {f"cues.{key}": tensor for key, tensor in self.cues.tensors().items()}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], turn: int, place: int, first_loss: float | None) -> Progress:
        """The inverse of `tensors`. KeyError or ValueError for what it did not make."""

        tables = [key.split(".")[1] for key in tensors if key.startswith("rows.") and key.endswith(".slots")]
        cues = {key.removeprefix("cues."): tensor for key, tensor in tensors.items() if key.startswith("cues.")}

        def moments(name: str) -> Moments:
            prefix = f"moments.{name}."
            return Moments.from_tensors({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})

        return cls(
            losses=tensors["losses"].tolist(),
            batch_slots={name: list(tensors[f"written.{name}"].split(tensors[f"written.{name}.counts"].tolist())) for name in tables},
            moments={name: moments(name) for name in tables},
            rows={name: Rows(tensors[f"rows.{name}.slots"], tensors[f"rows.{name}.values"]) for name in tables},
            generator=tensors["generator"],
            turn=turn,
            place=place,
            first_loss=first_loss,
            cues=Cues.from_tensors(cues) if cues else None,
        )


class Keeper(Protocol):
    """Saves the progress of a lesson now and then, and finds what was saved."""

    def found(self, cues: Cues | None) -> Progress | None:
        """Where the lesson, which has these cues, was stopped; None: it starts. StoreError where it had others."""

    def keep(self, progress: Progress, rows: Callable[[], dict[str, Rows]]) -> None:
        """Called after each step; `rows()` gives the rows as they are."""
