"""What can be taught: facts, texts, completions and conversations, each checked as it is made."""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator


def _encodable(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"expected text, got a lone surrogate ({value[error.start]!a}) at character {error.start}") from error
    return value


def _filled(value: str) -> str:
    if not any(character.isprintable() and not character.isspace() for character in value):
        raise ValueError("expected text, got an empty string")
    return value


def _identifier(value: object) -> object:
    # Numbers are common as ids in published data sets, and lose nothing as text.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _unreserved(value: str) -> str:
    if re.fullmatch(r"line \d+", value):
        raise ValueError(f"expected another id: {value!r} is how a row without an id is called")
    return value


AnyText = Annotated[str, Field(strict=True), AfterValidator(_encodable)]
FilledText = Annotated[AnyText, AfterValidator(_filled)]
Line = Annotated[FilledText, AfterValidator(str.strip)]
Identifier = Annotated[Line, AfterValidator(_unreserved), BeforeValidator(_identifier)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Example(_Strict):
    line: int = Field(ge=1, description="line of the file, counted from 1, where the example starts")
    id: Identifier | None = None

    @property
    def name(self) -> str:
        """What messages and records call the example: its id, else its line."""
        return self.id if self.id is not None else f"line {self.line}"


class Fact(_Example):
    """A question with its answer, in the wordings to teach and in those kept for testing. Strings are stripped."""

    question: Line
    answers: Annotated[tuple[Line, ...], Field(min_length=1), BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = Field(
        description="the first is taught, any of them counts as right"
    )
    statement: Line | None = Field(None, description="the fact as a sentence")
    statements: tuple[Line, ...] = Field((), description="more such sentences")
    paraphrases: tuple[Line, ...] = Field((), description="other wordings of the question, to teach")
    held_out: tuple[Line, ...] = Field((), description="wordings of the question that are only ever tested, never taught")
    supersedes: Identifier | None = Field(None, description="id of the earlier fact that this one replaces")

    @field_validator("supersedes")
    @classmethod
    def _not_itself(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value == info.data.get("id"):
            raise ValueError("expected the id of another fact, got its own")
        return value

    @property
    def questions(self) -> tuple[str, ...]:
        """Question wordings to teach, without repetitions."""
        return tuple(dict.fromkeys((self.question, *self.paraphrases)))

    @property
    def sentences(self) -> tuple[str, ...]:
        """Statements to teach, without repetitions."""
        return tuple(dict.fromkeys((*([self.statement] if self.statement else []), *self.statements)))


class Text(_Example):
    """Plain text, learned as it stands."""

    text: FilledText


class Completion(_Example):
    """A prompt, given, and the completion to learn, joined as they stand. The prompt may be empty."""

    prompt: AnyText
    completion: FilledText


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: AnyText

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        return {key: field for key, field in value.items() if field is not None} if isinstance(value, dict) else value

    @field_validator("content")
    @classmethod
    def _said_something(cls, value: str, info: ValidationInfo) -> str:
        return value if info.data.get("role") == "system" else _filled(value)


class Chat(_Example):
    """A conversation whose assistant turns are learned; it ends with one."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1)]

    @field_validator("messages")
    @classmethod
    def _ends_with_the_assistant(cls, value: tuple[Message, ...]) -> tuple[Message, ...]:
        if value[-1].role != "assistant":
            raise ValueError(f"expected the last turn to be the assistant's, got {value[-1].role!r}")
        return value


Example = Fact | Text | Completion | Chat


def normalise(wording: str) -> str:
    """A wording's identity: without case, punctuation, and differences in white space or Unicode form."""
    if wording.isascii():
        bare = wording.casefold().translate(_ASCII_PUNCTUATION)
    else:
        folded = unicodedata.normalize("NFKC", wording).casefold()
        bare = "".join(_without_punctuation(character) for character in folded)
    return " ".join(bare.split()) or wording.casefold()


@functools.lru_cache(maxsize=4096)
def _without_punctuation(character: str) -> str:
    if character in "'’":  # part of a word, as in "what's"
        return ""
    return " " if unicodedata.category(character).startswith("P") else character


_ASCII_PUNCTUATION = {ord(character): _without_punctuation(character) for character in string.punctuation}
