"""Documents to teach: a few of WikiDYK's statements in a row, as its source puts them. Each has a question that asks for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.materials import Choice, Material, Materials
from benchmarks.measurement import SHOTS, question_probe
from benchmarks.selection import Selection
from benchmarks.splits import check_unseen
from memgraft.comparison.overlap import asking_taught
from memgraft.comparison.summary import CONTROL, LEARNED
from memgraft.comparison.workshop import Lesson
from memgraft.errors import DataError
from memgraft.examples import Fact, Text, normalise

STATEMENTS_EACH = 5  # about 180 tokens a document
ASKED = 32  # questions that the base is asked at a time


class Documents(Materials):
    """Each choice's `facts` are documents. The statements of as many others, chosen by the same rule and not taught, are the control."""

    def _make(self, choice: Choice) -> Material:
        stating = [number for number, row in enumerate(self.rows) if states_answer(row)]
        with self._asking() as is_wrong:
            selection = select_statements(stating, is_wrong, choice.facts * STATEMENTS_EACH, choice.seed)
        taught, control = ([self.rows[index] for index in part] for part in (selection.taught, selection.control))
        texts = [
            " ".join(row["statement"] for row in taught[first : first + STATEMENTS_EACH])
            for first in range(0, len(taught), STATEMENTS_EACH)
        ]
        documents = [Text(line=number, text=text) for number, text in enumerate(texts, 1)]
        batches = self.workshop.prepare(documents, passes=self.passes, wordings=self.wordings, seed=choice.seed)
        if len(batches) != len(documents):
            raise DataError(f"{len(documents)} documents make {len(batches)} chunks: one is longer than a chunk")
        check_unseen(batches, self.workshop.tokenizer, (row["question"] for row in (*taught, *control)))
        stated = [
            Fact(line=1 + index, question=row["question"], answers=tuple(row["answers"]), statement=row["statement"])
            for index, row in zip(selection.taught, taught, strict=True)
        ]
        return Material(
            selection,
            Lesson(documents, batches, choice.seed, in_order=self.in_order),
            (question_probe(LEARNED, taught, SHOTS), question_probe(CONTROL, control, SHOTS)),
            {probe.name: found for probe in self.probes if (found := asking_taught(stated, probe))},
            each=STATEMENTS_EACH,
        )


def states_answer(row: Mapping[str, Any]) -> bool:
    """Whether an answer of a row stands in its statement, as is so of nine in ten: nobody could learn it else."""
    stated = f" {normalise(row['statement'])} "
    return any(f" {normalise(answer)} " in stated for answer in row["answers"])


def select_statements(rows: Sequence[int], is_wrong: Callable[[Sequence[int]], Sequence[bool]], count: int, seed: int) -> Selection:
    """Of these rows, in an order shuffled by the seed, the first that the base answers wrongly: `count` taught, then as many controls.

    Raises DataError where there are fewer.
    """
    order = random.Random(seed).sample(rows, len(rows))
    wrong: list[int] = []
    for first in range(0, len(rows), ASKED) if 2 * count <= len(rows) else ():
        some = order[first : first + ASKED]
        wrong += [row for row, chosen in zip(some, is_wrong(some), strict=True) if chosen]
        if len(wrong) >= 2 * count:
            return Selection(taught=tuple(wrong[:count]), control=tuple(wrong[count : 2 * count]))
    found = f"the base answers only {len(wrong)} of {len(rows)} questions wrongly" if wrong else f"there are only {len(rows)} questions"
    raise DataError(f"{found}, {2 * count} wanted, half of them to teach: teach fewer documents")
