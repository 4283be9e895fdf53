"""What the parts of the recipe benchmark share: the facts, what the base answers, and a real memory store that lessons go into."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measurement import SHOTS
from benchmarks.neighbours import Known, known
from benchmarks.recombined import recombined
from benchmarks.study import Study
from benchmarks.writing import write_json
from memgraft.comparison.grid import memory
from memgraft.comparison.runs import run_id
from memgraft.data import ExampleSet
from memgraft.examples import Fact
from memgraft.grafted import GraftedModel
from memgraft.history import History
from memgraft.learning import learn
from memgraft.probes import QuestionRow, f1, generate_answers
from memgraft.probes.measuring import few_shot_prompts
from memgraft.store import MemoryStore
from memgraft.teaching import Recipe


class Bench:
    """A study's model and data, with stores of lessons under its cache.

    Args:
        folder: where stores and the base's answers are kept, so that a killed benchmark goes on.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.rows = [*study.rows, *recombined(study.rows)]
        self.tokenizer = study.workshop.tokenizer
        self._known: dict[str, Known] = {}

    def known(self, questions: Sequence[QuestionRow]) -> list[Known]:
        """What the base answers to each question, five examples in front; asked once and kept."""
        path = self.folder / "known.json"
        if not self._known and path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["identity"] == self.study.identity:
                self._known = {question: Known(*values) for question, values in kept["known"].items()}
        asked = [row for row in questions if row.question not in self._known]
        if asked:
            grafted = self.study.workshop.grafted(memory())
            with grafted.without_memory():
                self._known |= {row.question: what for row, what in zip(asked, known(grafted.base, self.tokenizer, asked), strict=True)}
            write_json(path, {"identity": self.study.identity, "known": self._known})
        # Right or wrong by these answers, which may not be those that the question had when it was asked.
        found = ((self._known[row.question], row.answers) for row in questions)
        return [said._replace(f1=f1(said.answer, answers)) for said, answers in found]

    def question(self, number: int) -> QuestionRow:
        """A row as a question: of the data set, or one of those that are recombined from it, which have the numbers after."""
        row = self.rows[number]
        return QuestionRow(question=row["question"], answers=tuple(row["answers"]))

    def stored(self, name: str, rows: Sequence[int], seed: int) -> GraftedModel:
        """The memory of a store of that name for these rows of the data set, empty at first. One store at a time: they share the model."""
        grafted = self.study.workshop.grafted(memory())
        recipe, background = Recipe(seed=seed).model_dump(mode="json"), self.study.sizes.background_tokens
        settings = run_id({**self.study.identity, "rows": list(rows), "recipe": recipe, "background_tokens": background})
        path = self.folder / f"{name}-{settings}"
        grafted.history = History(MemoryStore.open(path) if path.exists() else None)
        grafted.recall()
        if grafted.history.store is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            grafted.save(path)
        return grafted

    def learn(self, grafted: GraftedModel, facts: Sequence[Fact], message: str, seed: int) -> None:
        """Teach facts as a lesson of that message by the default recipe, and save it. Nothing to do where it is there already."""
        store = grafted.history.store
        assert store is not None
        if any(entry.message == message for entry in store.history()):
            return
        print(f"teaching {len(facts)} facts: {message}", file=sys.stderr, flush=True)
        learn(grafted, example_set(facts), message=message, recipe=Recipe(seed=seed), test=False)
        grafted.save(store.path)

    def lessons(self, grafted: GraftedModel) -> list[str]:
        """The messages of the active lessons, in the order in which they were taught."""
        return [grafted.history.commit(id).message for id in grafted.history.active()]

    def ask(self, grafted: GraftedModel, questions: Sequence[QuestionRow]) -> list[str]:
        """The model's answers, five examples in front."""
        return generate_answers(grafted.base, self.tokenizer, few_shot_prompts(questions, SHOTS))


def example_set(facts: Sequence[Fact]) -> ExampleSet:
    """Facts as if they had been read from a file."""
    text = "".join(fact.model_dump_json() + "\n" for fact in facts)
    return ExampleSet("facts.jsonl", hashlib.sha256(text.encode()).hexdigest(), tuple(facts))


def stays(before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """How many answers are the same as before."""
    same = sum(one == other for one, other in zip(before, after, strict=True))
    return {"questions": len(before), "same": same, "share": round(same / len(before), 4) if before else None}
