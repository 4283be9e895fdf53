"""Reading what is to be taught: data files in, validated examples out.

One JSON object a line (.jsonl, .ndjson, .json), four formats that are told apart by their fields and may be mixed:

    {"question", "answers", "statement", "statements", "paraphrases", "held_out", "supersedes"}     a Fact
    {"text"}                                                                                        a Text
    {"prompt", "completion"}                                                                        a Completion
    {"messages": [{"role", "content"}, …]}                                                          a Chat

Each may carry an "id". A field "meta" and fields that start with "_" are the user's own and ignored, as are fields that are
null; all others are refused. A .txt file holds one Text per paragraph, paragraphs being parted by blank lines.
"""

from __future__ import annotations

import bisect
import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pydantic import ValidationError

from memgraft.errors import DataError
from memgraft.examples import Chat, Completion, Example, Fact, Message, Text, normalise

__all__ = ["Chat", "Completion", "Example", "ExampleSet", "Fact", "Message", "Text", "normalise", "parse_examples", "read_examples"]

_SHOWN_PROBLEMS = 10
_JSON_SUFFIXES = {".jsonl", ".ndjson", ".json", ""}
_BYTE_ORDER_MARK = "\ufeff"
_FORMATS: dict[str, type[Fact] | type[Text] | type[Completion] | type[Chat]] = {
    "fact": Fact,
    "text": Text,
    "prompt/completion": Completion,
    "messages": Chat,
}
_FIELDS = {name: tuple(field for field in model.model_fields if field != "line") for name, model in _FORMATS.items()}
_FORMAT_OF = {field: name for name, fields in _FIELDS.items() for field in fields if field != "id"}
_EXPECTED_ROW = 'expected "question" and "answers", or "text", or "prompt" and "completion", or "messages"'


@dataclass(frozen=True)
class ExampleSet:
    """A data file that was read without a fault."""

    path: str
    sha256: str  # of the file's bytes, in hex
    examples: tuple[Example, ...]


def read_examples(path: Path | str) -> ExampleSet:
    """Reads and checks a whole data file, line by line.

    A byte order mark at the start and CRLF line ends are accepted and change nothing. Raises DataError for a file that can't be
    read or holds no example, and for bad rows: the first ten, one line each (`file:line: field: what was expected`), and the
    number of the others.
    """
    path = Path(path)
    _is_plain(path)
    try:
        with path.open("rb") as stream:
            return parse_examples(stream, path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error


def parse_examples(stream: BinaryIO, path: Path) -> ExampleSet:
    """As `read_examples`, from an open file; `path` tells the format and names it in errors."""
    plain = _is_plain(path)
    problems = _Problems(path)
    digest = hashlib.sha256()
    examples: list[Example] = []
    ids: dict[str, int] = {}
    lines = _decoded_lines(stream, digest.update, problems)
    for number, text in _paragraphs(lines) if plain else _rows(lines):
        try:
            example = _example(number, {"text": text} if plain else _json_object(text))
            if example.id is not None and ids.setdefault(example.id, number) != number:
                raise _BadRow("id", f"expected a new id, {example.id!r} is that of line {ids[example.id]}")
        except _BadRow as problem:
            problems.add(number, problem.field, problem.expected)
        else:
            examples.append(example)
    _check_held_out(examples, problems)
    problems.raise_if_any()
    if not examples:
        raise DataError(f"{path}: no examples in the file: {'expected some text' if plain else _EXPECTED_ROW}")
    return ExampleSet(str(path), digest.hexdigest(), tuple(examples))


def _is_plain(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix != ".txt" and suffix not in _JSON_SUFFIXES:
        raise DataError(f"{path}: expected a .jsonl file (one JSON object a line) or a .txt file, got {suffix!r}")
    return suffix == ".txt"


class _Problems:
    """The first few problems of a file, by line, and the number of all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._first: list[tuple[int, str]] = []

    def add(self, line: int, field: str, expected: str) -> None:
        self._count += 1
        bisect.insort(self._first, (line, f"{field}: {expected}"))
        del self._first[_SHOWN_PROBLEMS:]

    def raise_if_any(self) -> None:
        if not self._count:
            return
        shown = [f"{self._path}:{line}: {text}" for line, text in self._first]
        rest = self._count - len(shown)
        if rest:
            shown.append(f"{self._path}: and {rest:,} more bad row{'s' if rest > 1 else ''}")
        raise DataError("\n".join(shown))


def _decoded_lines(stream: BinaryIO, update: Callable[[bytes], None], problems: _Problems) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; those that are not clean UTF-8 text are reported and left out."""
    offset = 0
    for number, raw in enumerate(stream, 1):
        update(raw)
        body = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            utf16 = number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff"))
            found = "this looks like UTF-16" if utf16 else f"got byte 0x{body[error.start]:02x} at byte offset {offset + error.start}"
            problems.add(number, "row", f"expected UTF-8, {found}")
            continue
        finally:
            offset += len(raw)
        if number == 1:
            text = text.removeprefix(_BYTE_ORDER_MARK)
        if "\r" in text:
            problems.add(number, "row", "expected lines that end in LF or CRLF, got a bare carriage return (CR)")
        elif text.startswith(_BYTE_ORDER_MARK):
            problems.add(number, "row", "expected a byte order mark only at the start of the file; were two files joined?")
        else:
            yield number, text


def _rows(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    return ((number, text) for number, text in lines if text.strip())


def _paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Blocks of lines between blank ones, each with the number of its first line."""
    for blank, block in itertools.groupby(lines, lambda line: not line[1].strip()):
        if not blank:
            numbers, texts = zip(*block, strict=True)
            yield numbers[0], "\n".join(texts)


class _BadRow(Exception):
    def __init__(self, field: str, expected: str) -> None:
        super().__init__(field, expected)
        self.field = field
        self.expected = expected


def _json_object(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise _BadRow("row", f"expected a complete JSON object, it breaks at column {error.colno} ({error.msg})") from error
    except RecursionError as error:
        raise _BadRow("row", "expected a flat JSON object, this one is nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise _BadRow("row", f"expected a JSON object, got a number beyond all bounds ({error})") from error
    if not isinstance(row, dict):
        raise _BadRow("row", f"expected one JSON object a line, got {_kind(row)}")
    return row


def _refuse_constant(constant: str) -> NoReturn:
    raise _BadRow("row", f"expected JSON, which has no {constant}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _BadRow(_shown(twice), "expected once in an object, got twice")
    return unique


def _example(line: int, row: Mapping[str, Any]) -> Example:
    given = {key: value for key, value in row.items() if value is not None and key != "meta" and not key.startswith("_")}
    by_format = {_FORMAT_OF[key]: key for key in reversed(given) if key in _FORMAT_OF}
    if len(by_format) > 1:
        found = " and ".join(f'"{key}" ({name})' for name, key in sorted(by_format.items()))
        raise _BadRow("row", f"expected the fields of one format, got {found}")
    if not by_format:
        found = ", ".join(_shown(key) for key in list(given)[:5]) or "no field"
        raise _BadRow("row", f"{_EXPECTED_ROW}; got {found}")
    (name,) = by_format
    for key in given:
        if key not in _FIELDS[name]:
            raise _BadRow(_shown(key), _unknown(key, name))
    try:
        return _FORMATS[name].model_validate({**given, "line": line})
    except ValidationError as error:
        raise _explained(error) from error


def _unknown(key: str, name: str) -> str:
    near = difflib.get_close_matches(key, _FIELDS[name], n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    return f'unknown field, {hint}expected {", ".join(_FIELDS[name])} (your own fields: under "meta", or with a name that starts with _)'


def _explained(error: ValidationError) -> _BadRow:
    """The first problem of a row, in the words of its author's file."""
    problem = error.errors(include_url=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{_plain(part)}" for part in problem["loc"]).removeprefix(".")
    got = _kind(problem["input"])
    match problem["type"]:
        case "missing":
            expected = "missing"
        case "string_type":
            expected = f"expected a string, got {got}"
        case "tuple_type":
            expected = f"expected a list, got {got}"
        case "model_type":
            expected = f"expected an object with role and content, got {got}"
        case "literal_error":
            shown = _shown(problem["input"]) if isinstance(problem["input"], str) else got
            expected = f"expected {problem['ctx']['expected']}, got {shown}"
        case "too_short":
            expected = "expected at least one, got an empty list"
        case "extra_forbidden":
            expected = "unknown field, expected role and content"
        case "value_error":
            expected = str(problem["ctx"]["error"])
        case _:
            expected = problem["msg"]
    return _BadRow(path, expected)


def _kind(value: object) -> str:
    """A JSON value's type, in JSON's words."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _shown(key: str) -> str:
    """A field's name, short and safe to print."""
    return f'"{_plain(key)}"'


def _plain(key: str) -> str:
    short = key if len(key) <= 40 else key[:37] + "…"
    return short if short.isprintable() else ascii(short)[1:-1]


def _check_held_out(examples: Sequence[Example], problems: _Problems) -> None:
    """Reports held-out wordings that the file itself teaches: they would test nothing."""
    held_out = {normalise(wording) for example in examples if isinstance(example, Fact) for wording in example.held_out}
    if not held_out:
        return
    taught = dict[str, int]()
    for example in examples:
        for wording in _taught(example):
            key = normalise(wording)
            if key in held_out:
                taught.setdefault(key, example.line)
    for example in examples:
        if isinstance(example, Fact):
            for index, wording in enumerate(example.held_out):
                line = taught.get(normalise(wording))
                if line is not None:
                    problems.add(example.line, f"held_out[{index}]", f"expected a wording that is never taught, line {line} teaches it")
                    break


def _taught(example: Example) -> Iterator[str]:
    match example:
        case Fact():
            yield from (*example.questions, *example.sentences)
        case Completion():
            yield example.prompt
        case Chat():
            yield from (message.content for message in example.messages if message.role == "user")
