"""What is measured on every model of a benchmark: facts learned, control facts, other questions, running text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.relations import facts_for
from benchmarks.selection import Selection
from memgraft.config import Config
from memgraft.errors import DataError
from memgraft.probes import QAProbe, QuestionRow, TextProbe, load_probe

FACTS = Path("facts", "entityquestions.jsonl")
STATEMENTS = Path("facts", "wikidyk.jsonl")
QUESTIONS = Path("probes", "webquestions.jsonl")
TEXT = Path("text", "wikitext2_test.txt")
SHOTS = 5  # examples in front of a test question


class Protocol(Config):
    """Everything that shapes the figures, beside the arm: part of a run's identity."""

    model: str = Field(description="the base model, as named by the user")
    dtype: str = Field(description="of the base model's weights")
    device: str = Field("cpu", description="kind of device that taught and measured")
    facts: int = Field(50, gt=0, description="facts taught, and as many controls")
    wordings: int = Field(4, gt=0, description="training strings a fact in each pass, others every time")
    passes: int = Field(14, gt=0, description="times that every fact is taught")
    shots: int = Field(5, ge=0, description="examples in front of a test question")
    questions: int = Field(300, gt=0, description="WebQuestions asked")
    text_tokens: int = Field(32_768, gt=1, description="tokens of WikiText-2 test read")
    seed: int = Field(0, description="of the choice of facts, their wordings, the order of teaching and the arms' random starts")


def data_file(folder: Path, name: Path) -> Path:
    """A file of the data folder. Raises DataError if it is not there."""
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path}: no such file: --data (or MEMGRAFT_DATA) must name the folder that holds {name}")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, as they are. Raises DataError naming the line of a row that is not a JSON object."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}:{number}: expected a JSON object ({error})") from error
    return rows


def question_probe(name: str, rows: Sequence[Mapping[str, Any]], shots: int) -> QAProbe:
    """The data set's own questions in the few-shot test frame."""
    questions = tuple(QuestionRow(question=row["question"], answers=tuple(row["answers"])) for row in rows)
    return QAProbe(name=name, questions=questions, shots=shots)


def probes_for(folder: Path, rows: Sequence[Mapping[str, Any]], selection: Selection, protocol: Protocol) -> list[QAProbe | TextProbe]:
    """The benchmark's probes: learned, control, webquestions (F1), wikitext (NLL).

    Raises:
        DataError: a file of the data folder is missing, or can't be used.
    """
    questions = load_probe(f"qa:{data_file(folder, QUESTIONS)}#{protocol.questions}")
    text = load_probe(f"text:{data_file(folder, TEXT)}#{protocol.text_tokens}")
    assert isinstance(questions, QAProbe)
    assert isinstance(text, TextProbe)
    return [
        question_probe("learned", [rows[index] for index in selection.taught], protocol.shots),
        question_probe("control", [rows[index] for index in selection.control], protocol.shots),
        questions.model_copy(update={"name": "webquestions", "shots": protocol.shots}),
        text.model_copy(update={"name": "wikitext"}),
    ]


def taught_rows(rows: Sequence[dict[str, Any]], selection: Selection) -> list[dict[str, Any]]:
    """The taught facts' fields, without the benchmark's own remarks."""
    return [
        {name: value for name, value in fact.items() if name != "meta"} for fact in facts_for(rows[index] for index in selection.taught)
    ]
