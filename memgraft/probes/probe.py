"""What must not get worse, as data: the kinds of probes, and how a probe is read from a file. Nothing here runs a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from memgraft.config import Config
from memgraft.errors import DataError
from memgraft.probes.rows import ChoiceRow, QuestionRow, TextRow, decoded, parse_rows

ANSWER_TOKENS = 16


class QAProbe(Config):
    """Answers generated to questions, scored by F1 or exact match."""

    kind: Literal["qa"] = "qa"
    name: str
    questions: tuple[QuestionRow, ...] = Field(min_length=1)
    metric: Literal["f1", "exact match"] = Field(default="f1", description="the score of an answer; the other one stands in its outcome")
    frame: Literal["few-shot", "chat"] = Field(default="few-shot", description="how a question is asked")
    shots: int = Field(default=5, ge=0, description="examples in front of a question (few-shot frame)")
    max_new_tokens: int = Field(default=ANSWER_TOKENS, gt=0, description="tokens that an answer may have")


class AnswerNLLProbe(Config):
    """How likely the first accepted answer of each question is."""

    kind: Literal["nll"] = "nll"
    name: str
    questions: tuple[QuestionRow, ...] = Field(min_length=1)
    shots: int = Field(default=5, ge=0, description="examples in front of a question")


class ChoiceProbe(Config):
    """Multiple choice: the choice with the lowest NLL per token after 'Question: …\\nAnswer:' is the model's."""

    kind: Literal["choice"] = "choice"
    name: str
    questions: tuple[ChoiceRow, ...] = Field(min_length=1)


class TextProbe(Config):
    """How likely running text is."""

    kind: Literal["text"] = "text"
    name: str
    texts: tuple[str, ...] = Field(min_length=1)
    window: int = Field(default=512, gt=1, description="tokens read at a time, each window by itself")
    max_tokens: int | None = Field(default=None, gt=1, description="how many of the texts' first tokens are used")


class DriftProbe(Config):
    """How far the next-token distributions on running text, or on token rows as the base wrote them, have moved from the base's."""

    kind: Literal["drift"] = "drift"
    name: str
    texts: tuple[str, ...] = ()
    rows: tuple[tuple[int, ...], ...] = Field(default=(), description="token ids, each row read as it is; instead of texts")
    window: int = Field(default=512, gt=1, description="tokens read at a time, each window by itself")
    max_tokens: int | None = Field(default=None, gt=1, description="how many of the texts' first tokens are used")

    @model_validator(mode="after")
    def _one_source(self) -> DriftProbe:
        if bool(self.texts) == bool(self.rows) or not all(self.rows):
            raise ValueError("a drift probe needs either texts or rows of token ids, not both, and no empty row")
        if self.rows and self.max_tokens is not None:
            raise ValueError("max_tokens cuts texts: cut the rows of token ids themselves")
        return self


Probe = Annotated[QAProbe | AnswerNLLProbe | ChoiceProbe | TextProbe | DriftProbe, Field(discriminator="kind")]

KINDS = ("qa", "nll", "choice", "text", "drift")


def load_probe(spec: str) -> QAProbe | AnswerNLLProbe | ChoiceProbe | TextProbe | DriftProbe:
    """A probe from 'path', 'kind:path', 'path#limit' or 'kind:path#limit'.

    Kinds: qa, nll, choice (JSONL), text and drift (a plain text file, or JSONL with `text`). Without a kind, JSONL rows
    with `choices` are choice, with `answers` qa, with one `answer` nll, with `text` text; any other file is text. The
    limit counts rows; for text and drift it counts tokens.

    Raises DataError for a path, kind, limit or row that can't be used.
    """
    kind, path, limit = _split(spec)
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = f" (the kinds of probes are {', '.join(KINDS)})" if ":" in spec else ""
        raise DataError(f"{path}: {error.strerror or error}: can't read the probe{hint}") from None
    name = str(path)
    kind = kind or _guess(content, path)
    if kind in ("text", "drift") and limit == 1:
        raise DataError(f"{spec}: expected a whole number of at least 2 after '#', tokens of text, got '1'")
    if kind in ("text", "drift"):
        texts = _texts(content, path)
        return (TextProbe if kind == "text" else DriftProbe)(name=path.stem, texts=texts, max_tokens=limit)
    if kind == "choice":
        return ChoiceProbe(name=path.stem, questions=tuple(parse_rows(content, name, ChoiceRow, limit)))
    questions = tuple(parse_rows(content, name, QuestionRow, limit))
    return (QAProbe if kind == "qa" else AnswerNLLProbe)(name=path.stem, questions=questions)


def _split(spec: str) -> tuple[str | None, Path, int | None]:
    head, colon, rest = spec.partition(":")
    kind, place = (head, rest) if colon and head in KINDS else (None, spec)
    if "#" not in place or Path(place).exists():
        return kind, Path(place), None
    place, _, limit = place.rpartition("#")
    if not (limit.isascii() and limit.isdigit() and int(limit) >= 1):
        raise DataError(f"{spec}: expected a whole number of at least 1 after '#', got {limit!r}")
    return kind, Path(place), int(limit)


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".json", ".ndjson")


def _guess(content: bytes, path: Path) -> str:
    if not _is_json(path):
        return "text"
    lines = decoded(content, str(path)).split("\n")
    number, line = next(((number, line) for number, line in enumerate(lines, 1) if line.strip()), (1, "null"))
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: expected a complete JSON object, {error.msg} at column {error.colno}") from None
    fields = {"choices": "choice", "answers": "qa", "answer": "nll", "text": "text"}
    found = next((kind for field, kind in fields.items() if isinstance(row, dict) and field in row), None)
    if found is None:
        raise DataError(f"{path}:{number}: can't tell the probe's kind: expected a field {', '.join(fields)}, or say it as in 'qa:{path}'")
    return found


def _texts(content: bytes, path: Path) -> tuple[str, ...]:
    if _is_json(path):
        return tuple(row.text for row in parse_rows(content, str(path), TextRow))
    text = decoded(content, str(path)).replace("\r\n", "\n")
    if not text.strip():
        raise DataError(f"{path}: no text: expected running text")
    return (text,)
