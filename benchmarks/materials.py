"""What a run teaches and what it asks: facts chosen by docs/protocol.md, their lesson, the questions about them and beside them.

What the base answers is asked once for all runs, and kept in the folder of the results: which rows it answers wrongly (asked.json),
which it is sure of (sure.json).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measurement import SHOTS, question_probe, taught_rows
from benchmarks.neighbours import SURE, known, leaks, near_misses, near_rows
from benchmarks.selection import Selection, select_facts
from benchmarks.splits import Split, check_unseen, overlapping, rows_of
from benchmarks.writing import write_json
from memgraft.comparison.measuring import AnyProbe
from memgraft.comparison.methods import Base
from memgraft.comparison.summary import CONTROL, LEAKED, LEARNED, NEAR
from memgraft.comparison.workshop import Lesson, Workshop
from memgraft.examples import Fact, Text
from memgraft.probes import AnswerNLLProbe, QAProbe, QuestionRow, measure

NOTHING = Lesson((), (), 0)  # what the base is taught


class Choice(NamedTuple):
    """Which facts."""

    split: Split
    facts: int
    seed: int


@dataclass(frozen=True)
class Material:
    """What a choice of facts gives: the lesson, and the probes that ask for it."""

    selection: Selection
    lesson: Lesson
    probes: tuple[QAProbe, ...]  # learned, control
    overlaps: dict[str, list[int]]  # probe → rows that ask for a taught fact
    each: int = 1  # questions about each fact or document that is taught

    @property
    def texts(self) -> tuple[str, ...]:
        """Of documents."""
        return tuple(example.text for example in self.lesson.facts if isinstance(example, Text))

    @property
    def facts(self) -> list[Fact]:
        """What is taught, where it is facts."""
        return [example for example in self.lesson.facts if isinstance(example, Fact)]


class Materials:
    """The material of every choice, each made once.

    Args:
        rows: the data set.
        probes: that are asked beside the facts: their rows that ask for a taught fact are counted.
        passes: of the method that has the most.
        wordings: training strings a fact in each pass.
        in_order: lessons are streams.
        output: folder of what the base was asked.
        identity: of the model and the data; what was asked of others is asked again.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        workshop: Workshop,
        probes: Sequence[AnyProbe],
        *,
        passes: int,
        wordings: int,
        in_order: bool,
        output: Path,
        identity: Mapping[str, Any],
    ) -> None:
        self.rows, self.workshop, self.probes = rows, workshop, probes
        self.passes, self.wordings, self.in_order = passes, wordings, in_order
        self.output, self.identity = output, identity
        self._made: dict[Choice, Material] = {}

    def of(self, choice: Choice) -> Material:
        """The lesson and the questions of a choice. Raises DataError where a test question would be taught."""
        if choice not in self._made:
            self._made[choice] = self._make(choice)
        return self._made[choice]

    def beside(self, choice: Choice) -> Iterator[QAProbe]:
        """Near misses, where the base is sure of any, and leaks."""
        taught = self.of(choice).selection.taught
        near = near_misses(NEAR, self.rows, taught, self._sure())
        if near is not None:
            yield near
        yield leaks(LEAKED, self.rows, taught, choice.seed)

    def asked(self, selection: Selection) -> dict[str, list[int]]:
        """Probe → of each of its items the row of the data set that it is, or whose subject it asks about."""
        taught = list(selection.taught)
        return {LEARNED: taught, CONTROL: list(selection.control), LEAKED: taught, NEAR: near_rows(self.rows, taught, self._sure())}

    def _make(self, choice: Choice) -> Material:
        selection = self._selection(choice)
        rows = taught_rows(self.rows, selection)
        facts = [Fact(line=1 + index, **row) for index, row in zip(selection.taught, rows, strict=True)]
        batches = self.workshop.prepare(facts, passes=self.passes, wordings=self.wordings, seed=choice.seed)
        asked = (*selection.taught, *selection.control)
        check_unseen(batches, self.workshop.tokenizer, (self.rows[index]["question"] for index in asked))
        return Material(
            selection,
            Lesson(facts, batches, choice.seed, in_order=self.in_order),
            (
                question_probe(LEARNED, [self.rows[index] for index in selection.taught], SHOTS),
                question_probe(CONTROL, [self.rows[index] for index in selection.control], SHOTS),
            ),
            {
                probe.name: found
                for probe in self.probes
                if isinstance(probe, QAProbe | AnswerNLLProbe) and (found := overlapping(facts, probe.questions))
            },
        )

    def _selection(self, choice: Choice) -> Selection:
        own = rows_of(self.rows, choice.split)
        with self._asking() as is_wrong:
            chosen = select_facts(
                [self.rows[index] for index in own], lambda some: is_wrong([own[index] for index in some]), choice.facts, choice.seed
            )
        return Selection(taught=tuple(own[i] for i in chosen.taught), control=tuple(own[i] for i in chosen.control))

    @contextmanager
    def _asking(self) -> Iterator[Callable[[Sequence[int]], list[bool]]]:
        """Within, a function that says which of some rows the base answers wrongly. It is asked each once, and that is kept at the end."""
        path = self.output / "asked.json"
        kept = self._kept(path) or {"identity": self.identity, "wrong": {}}
        wrong: dict[str, bool] = kept["wrong"]

        def is_wrong(rows: Sequence[int]) -> list[bool]:
            asked = [row for row in rows if str(row) not in wrong]
            if asked:
                probe = question_probe("candidates", [self.rows[row] for row in asked], SHOTS)
                with self.workshop.taught(Base(), NOTHING) as taught:
                    values = measure(probe, taught.model, self.workshop.tokenizer).values
                wrong.update({str(row): value == 0 for row, value in zip(asked, values, strict=True)})
            return [wrong[str(row)] for row in rows]

        before = len(wrong)
        try:
            yield is_wrong
        finally:
            if len(wrong) > before:
                write_json(path, kept, indent=None)

    def _sure(self) -> dict[int, str]:
        """Number of a row → the base's answer, of those that it is sure of; all rows are asked once."""
        path = self.output / "sure.json"
        kept = self._kept(path)
        if not kept:
            print(f"asking the base all {len(self.rows)} rows, to know which it is sure of", file=sys.stderr, flush=True)
            questions = [QuestionRow(question=row["question"], answers=tuple(row["answers"])) for row in self.rows]
            with self.workshop.taught(Base(), NOTHING) as taught:
                answers = known(taught.model, self.workshop.tokenizer, questions)
            sure = {str(number): found.answer for number, found in enumerate(answers) if found.probability >= SURE}
            kept = {"identity": self.identity, "sure": sure}
            write_json(path, kept, indent=None)
        return {int(number): answer for number, answer in kept["sure"].items()}

    def _kept(self, path: Path) -> dict[str, Any]:
        """What a file keeps of this model and data; nothing where it is of others."""
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return kept if kept.get("identity") == self.identity else {}
