"""The root of a store: which files it has, and the history of its lessons. Replacing it commits a change.

Everything that `log` prints is here, so that a history of thousands of lessons opens one file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from memgraft.canonical import canonical_json, parse_json
from memgraft.config import Config
from memgraft.errors import DataError, StoreError
from memgraft.store.spec import FORMAT_VERSION

MANIFEST = "manifest.json"
CONFIG = "config.json"
MEMORY = "memory.safetensors"
USAGE = "usage.safetensors"
BACKGROUND = "background.jsonl"
COMMITS = "commits"
RECORDS = "records"
DATA = "data"
CHECKPOINT = ".checkpoint.safetensors"  # of a lesson that was stopped; no part of the store
FIXED = (CONFIG, MEMORY, USAGE, BACKGROUND)
MANIFEST_LIMIT = 256 << 20  # bytes, some 400,000 lessons
MESSAGE_LIMIT = 4_000  # characters; the history repeats every message

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
DataName = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\.(jsonl|txt)$")]
TAG = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
TagName = Annotated[str, Field(pattern=f"^{TAG}$")]
FileEntry = tuple[Annotated[int, Field(ge=0)], Sha256]  # bytes and digest; a plain tuple, because a store has thousands

_POINTS = ("start", "now")
# Which operation may follow which on one lesson.
_POSSIBLE = {("learn", None), ("learn", "revert"), ("learn", "gc"), ("revert", "learn"), ("gc", "revert")}


def check_message(message: str) -> None:
    """DataError for a lesson's message that no history could take."""
    if not message.strip():
        raise DataError("the message is empty; say what the lesson is about")
    if len(message) > MESSAGE_LIMIT:
        raise DataError(f"the message has {len(message):,} characters, at most {MESSAGE_LIMIT:,} fit; shorten it")
    try:
        message.encode()
    except UnicodeEncodeError as error:
        raise DataError("the message is not valid UTF-8; type it again") from error


class HistoryEntry(Config):
    """One step of the history: a lesson learned, taken back, or its files removed for good."""

    op: Literal["learn", "revert", "gc"]
    commit: Sha256 = Field(description="id of the lesson")
    when: str = Field(description="ISO 8601 time, for people; nothing depends on it")
    message: str = Field(default="", max_length=MESSAGE_LIMIT, description="the lesson's message")
    rows: int = Field(default=0, ge=0, description="rows that the lesson changed, over all tables")
    data: DataName | None = Field(default=None, description="the file in `data` that was taught, where the store keeps it")


class Manifest(Config):
    """The files of a store, its append-only history, and names for points of it."""

    format_version: int = FORMAT_VERSION
    files: Mapping[str, FileEntry]
    history: tuple[HistoryEntry, ...] = ()
    tags: Mapping[TagName, Annotated[int, Field(ge=0)]] = Field(default={}, description="name → entries of the history at that point")

    def active(self, at: int | None = None) -> list[str]:
        """Ids of the lessons learned and not reverted since, in the order of their learning; after the first `at` entries if given."""
        ids: dict[str, None] = {}
        for entry in self.history[:at]:
            if entry.op == "learn":
                ids[entry.commit] = None
            elif entry.op == "revert":
                del ids[entry.commit]
        return list(ids)

    def check_history(self) -> None:
        """ValueError for a history that can't have happened."""
        states: dict[str, str] = {}
        for position, entry in enumerate(self.history):
            state = states.get(entry.commit)
            if (entry.op, state) not in _POSSIBLE:
                shown = {"learn": "already active", "revert": "reverted", "gc": "removed by gc"}.get(state or "", "not learned")
                raise ValueError(f"history entry {position}: {entry.op} of {entry.commit[:12]}, which is {shown}")
            states[entry.commit] = entry.op
        late = next((name for name, position in self.tags.items() if position > len(self.history)), None)
        if late is not None:
            raise ValueError(f"tag {late}: at entry {self.tags[late]} of a history of {len(self.history)}")

    @cached_property
    def _learned(self) -> Counter[str]:
        return Counter(entry.commit for entry in self.history if entry.op == "learn")

    def times_learned(self, commit: str) -> int:
        return self._learned[commit]

    def data_name(self, commit: str) -> str | None:
        """The name of the file that the lesson was taught from, where the store keeps it."""
        for entry in reversed(self.history):
            if entry.commit == commit:
                if entry.op == "gc":
                    break
                if entry.data:
                    return f"{DATA}/{entry.data}"
        return None

    def expected_files(self) -> set[str]:
        """Names of the files that this history needs."""
        learned: dict[str, int] = {}
        files: dict[str, list[str]] = {}
        for entry in self.history:
            if entry.op == "learn":
                learned[entry.commit] = learned.get(entry.commit, 0) + 1
                names = files.setdefault(entry.commit, [changes_name(entry.commit), header_name(entry.commit)])
                names.append(record_name(entry.commit, learned[entry.commit]))
                if entry.data:
                    names.append(f"{DATA}/{entry.data}")
            elif entry.op == "gc":
                del files[entry.commit]
        return {*FIXED, *(name for names in files.values() for name in names)}

    def collectable(self) -> Iterator[HistoryEntry]:
        """The last entry of each lesson whose files neither the memory nor a tag needs."""
        needed = set(self.active()).union(*(self.active(position) for position in self.tags.values()))
        last = {entry.commit: entry for entry in self.history}
        return (entry for commit, entry in last.items() if commit not in needed and entry.op == "revert")

    def position(self, point: str) -> int:
        """How many entries the history had at a point: a tag, `now`, `start`, or a lesson's id (right after it was learned)."""
        if point in _POINTS:
            return 0 if point == "start" else len(self.history)
        if point in self.tags:
            return self.tags[point]
        id = self.resolve(point)
        return max(number for number, entry in enumerate(self.history, 1) if entry.commit == id and entry.op == "learn")

    def resolve(self, prefix: str) -> str:
        """The id of the lesson that a tag marks, or of the one whose id starts with `prefix`. StoreError when it is none, or several."""
        if prefix in self.tags:
            return self._tagged(prefix)
        if prefix in self._learned:
            return prefix
        found = list(dict.fromkeys(entry.commit for entry in self.history if prefix and entry.commit.startswith(prefix.lower())))
        if not found:
            raise StoreError(f"no lesson has an id that starts with {prefix!r}; `memgraft log` lists them")
        if len(found) > 1:
            some = ", ".join(commit[:12] for commit in found[:3]) + (", …" if len(found) > 3 else "")
            raise StoreError(f"{len(found)} lessons have an id that starts with {prefix!r} ({some}); give more of it")
        return found[0]

    def _tagged(self, name: str) -> str:
        position = self.tags[name]
        if not position or self.history[position - 1].op != "learn":
            raise StoreError(f"the tag {name!r} marks no lesson but a point of the history; give a lesson's id")
        return self.history[position - 1].commit

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json", exclude_none=True)) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Reads and checks a manifest; `where` names it in errors."""
        check_version(parse(data, where), where)
        try:
            manifest = cls.model_validate_json(data, strict=True)
            manifest.check_history()
        except ValidationError as error:
            raise StoreError(f"{where}: {first_problem(error)}; restore the file from a copy of the store") from error
        except ValueError as error:
            raise StoreError(f"{where}: {error}; restore the file from a copy of the store") from error
        # Only names that the history implies are ever opened, so that no name can lead out of the store.
        differing = sorted(manifest.expected_files().symmetric_difference(manifest.files))
        if differing:
            what = "lists a file that no lesson has" if differing[0] in manifest.files else "does not list"
            raise StoreError(f"{where}: {what}: {json.dumps(differing[0][:120])}; restore the file from a copy of the store")
        return manifest


def changes_name(commit: str) -> str:
    return f"{COMMITS}/{commit}.safetensors"


def header_name(commit: str) -> str:
    return f"{COMMITS}/{commit}.json"


def record_name(commit: str, time: int) -> str:
    """The record of the `time`-th time (from 1) that a lesson was learned: equal lessons may be measured differently."""
    return f"{RECORDS}/{commit}.json" if time == 1 else f"{RECORDS}/{commit}.{time}.json"


def check_tag(name: str) -> None:
    """StoreError for a name that a tag can't have: it must not read as an id or a point."""
    if not re.fullmatch(TAG, name) or name in _POINTS or re.fullmatch("[0-9a-fA-F]+", name):
        raise StoreError(
            f"a tag can't be called {name[:80]!r}: it takes up to 64 letters, digits, dots, dashes and underscores, "
            f"not only hex digits (they are ids), and not start or now"
        )


def parse(data: bytes, where: str) -> dict[str, object]:
    """A JSON object, or a StoreError."""
    try:
        value = parse_json(data)
    except ValueError as error:
        raise StoreError(f"{where}: {error}; restore the file from a copy of the store") from error
    if not isinstance(value, dict):
        raise StoreError(f"{where}: expected a JSON object, got {type(value).__name__}; restore the file from a copy of the store")
    return value


def check_version(value: Mapping[str, object], where: str) -> None:
    """Refuses what a newer memgraft wrote before anything else of it is read."""
    version = value.get("format_version")
    if type(version) is not int or version < 1:
        raise StoreError(f"{where}: format_version must be a positive integer, got {version!r}; is this a memgraft store?")
    if version > FORMAT_VERSION:
        raise StoreError(
            f"{where}: written by a newer memgraft (format {version}, this one reads up to {FORMAT_VERSION}); upgrade memgraft"
        )


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints, on one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part)[:80] for part in first["loc"])
    return " ".join(f"{place}: {first['msg']}".split())
