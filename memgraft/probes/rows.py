"""Rows of probe files, one JSON object a line, checked field by field. Unknown fields are ignored: public data sets have many."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from memgraft.errors import DataError

REPORTED = 10  # bad rows named in one error


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("expected some text, got only white space" if text else "expected some text, got an empty string")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
# A list in JSON and in Python both; strict is about the texts in it.
Texts = Annotated[tuple[Text, ...], Field(strict=False)]


class Row(BaseModel):
    """A checked row: frozen, of exactly the types that its fields state."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class QuestionRow(Row):
    """A question and the answers that are accepted; a single `answer` is read as a list of one.

    Blank answers beside others are left out (the alias lists of public data sets have some): an empty prediction would
    match them.
    """

    question: Text
    answers: Texts = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _usable_answers(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not data.keys() & {"answer", "answers"}:
            return data
        answers = data["answers"] if "answers" in data else [data["answer"]]
        if isinstance(answers, (list, tuple)):
            answers = [answer for answer in answers if not isinstance(answer, str) or answer.strip()] or answers
        return {**data, "answers": answers}


class ChoiceRow(Row):
    """A question with choices; `answer` is the index, from 0, of the right one."""

    question: Text
    choices: Texts = Field(min_length=2)
    answer: int

    @field_validator("answer")
    @classmethod
    def _in_range(cls, answer: int, info: ValidationInfo) -> int:
        choices = info.data.get("choices")
        if choices is not None and not 0 <= answer < len(choices):
            raise ValueError(f"expected the index of a choice, 0 to {len(choices) - 1}, got {answer}")
        return answer


class TextRow(Row):
    """A text."""

    text: Text


AnyRow = TypeVar("AnyRow", bound=Row)


def decoded(content: bytes, name: str) -> str:
    """UTF-8 text, with or without a byte order mark, line ends as they come. Raises DataError with the line of a bad byte."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}): save the file as UTF-8") from None


def parse_rows(content: bytes, name: str, kind: type[AnyRow], limit: int | None = None) -> list[AnyRow]:
    """The first `limit` rows of a JSONL file's content, blank lines skipped.

    Raises DataError naming file:line and field of the bad rows (the first ten, one line each), or that there is no row.
    """
    rows: list[AnyRow] = []
    faults: list[str] = []
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(decoded(content, name).split("\n"), 1):
        if limit is not None and len(rows) + len(faults) >= limit:
            break
        if not line.strip():
            continue
        try:
            rows.append(kind.model_validate_json(line))
        except ValidationError as error:
            faults.append(f"{name}:{number}: {_reason(error)}")
    if faults:
        more = [f"{name}: and {len(faults) - REPORTED:,} more bad rows"] if len(faults) > REPORTED else []
        raise DataError("\n".join(faults[:REPORTED] + more))
    if not rows:
        raise DataError(f"{name}: no rows: expected one JSON object a line")
    return rows


def _reason(error: ValidationError) -> str:
    """The first fault of a row in words: 'field …: what was expected'."""
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "json_invalid":
        # The row is one line to the parser, so its "at line 1" would contradict the file's line number.
        return f"expected a complete JSON object, {context['error'].replace(' at line 1 column ', ' at column ')}"
    if not first["loc"]:
        return "expected a JSON object, one a line"
    expected = {
        "missing": "missing",
        "string_type": "expected a string",
        "tuple_type": "expected a list of strings",
        "int_type": "expected a whole number",
        "too_short": f"expected at least {context.get('min_length')}",
    }.get(kind, first["msg"].removeprefix("Value error, "))
    got = f", got {json.dumps(first['input'])[:40]}" if kind in ("string_type", "tuple_type", "int_type", "too_short") else ""
    field = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in first["loc"])
    return f"{field}: {expected}{got}"
