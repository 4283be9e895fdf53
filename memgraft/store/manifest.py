"""The root of a store: which files it has, and the history of its lessons. Replacing it commits a change.

Everything that `log` prints is here, so that a history of thousands of lessons opens one file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from memgraft.canonical import canonical_json, parse_json
from memgraft.config import Config
from memgraft.errors import StoreError
from memgraft.store.spec import FORMAT_VERSION

MANIFEST = "manifest.json"
CONFIG = "config.json"
MEMORY = "memory.safetensors"
USAGE = "usage.safetensors"
BACKGROUND = "background.jsonl"
COMMITS = "commits"
RECORDS = "records"
FIXED = (CONFIG, MEMORY, USAGE, BACKGROUND)
MANIFEST_LIMIT = 256 << 20  # bytes, some 400,000 lessons

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FileEntry = tuple[Annotated[int, Field(ge=0)], Sha256]  # bytes and digest; a plain tuple, because a store has thousands


class HistoryEntry(Config):
    """One step of the history: a lesson learned, or taken back."""

    op: Literal["learn", "revert"]
    commit: Sha256 = Field(description="id of the lesson")
    when: str = Field(description="ISO 8601 time, for people; nothing depends on it")
    message: str = Field(default="", description="the lesson's message")
    rows: int = Field(default=0, ge=0, description="rows that the lesson changed, over all tables")


class Manifest(Config):
    """The files of a store and its append-only history."""

    format_version: int = FORMAT_VERSION
    files: Mapping[str, FileEntry]
    history: tuple[HistoryEntry, ...] = ()

    def active(self) -> list[str]:
        """Ids of the lessons that were learned and not reverted since, in the order in which they were learned."""
        ids: dict[str, None] = {}
        for position, entry in enumerate(self.history):
            if (entry.op == "learn") == (entry.commit in ids):
                state = "already active" if entry.op == "learn" else "not active"
                raise ValueError(f"history entry {position}: {entry.op} of {entry.commit[:12]}, which is {state}")
            if entry.op == "learn":
                ids[entry.commit] = None
            else:
                del ids[entry.commit]
        return list(ids)

    def times_learned(self, commit: str) -> int:
        return sum(entry.op == "learn" and entry.commit == commit for entry in self.history)

    def expected_files(self) -> set[str]:
        """Names of the files that this history needs."""
        names = set(FIXED)
        learned: dict[str, int] = {}
        for entry in self.history:
            if entry.op == "learn":
                learned[entry.commit] = learned.get(entry.commit, 0) + 1
                names.update((changes_name(entry.commit), header_name(entry.commit), record_name(entry.commit, learned[entry.commit])))
        return names

    def resolve(self, prefix: str) -> str:
        """The id of the one lesson whose id starts with `prefix`. StoreError when there is none, or several."""
        found = list(dict.fromkeys(entry.commit for entry in self.history if prefix and entry.commit.startswith(prefix.lower())))
        if not found:
            raise StoreError(f"no lesson has an id that starts with {prefix!r}; `memgraft log` lists them")
        if len(found) > 1:
            some = ", ".join(commit[:12] for commit in found[:3]) + (", …" if len(found) > 3 else "")
            raise StoreError(f"{len(found)} lessons have an id that starts with {prefix!r} ({some}); give more of it")
        return found[0]

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json")) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Reads and checks a manifest; `where` names it in errors."""
        check_version(parse(data, where), where)
        try:
            manifest = cls.model_validate_json(data, strict=True)
            manifest.active()
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
