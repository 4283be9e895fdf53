"""`memgraft show`: one lesson with all that is known of it."""

from __future__ import annotations

from typing import Any

from memgraft.cli.console import print_json, say
from memgraft.cli.lessons import (
    describe,
    earlier_overlaps,
    overlap_lines,
    print_facts,
    print_history,
    record_of,
    summary,
    superseded_nothing,
)
from memgraft.cli.options import Json, Lesson, Store


def show(store: Store, lesson: Lesson, json: Json = False) -> None:
    """Show a lesson and what it did.

    Message, times, recipe, digest of the data, rows written, overlaps with other lessons, and the facts with the answers before and after.
    """
    from memgraft.store import MemoryStore

    found = describe(MemoryStore.open(store), lesson)
    if json:
        print_json(found)
        return
    record = record_of(found)
    print_history(found)
    say("recipe  " + ", ".join(_setting(name, value) for name, value in found["recipe"].items()))
    for line in summary(found, record).splitlines():
        say(line)
    for text in (
        *earlier_overlaps(record),
        *superseded_nothing(record),
        *overlap_lines(found["later_overlaps"], "{slots} of its slots were written again by the later lesson"),
    ):
        say(text)
    if record.facts:
        say("")
        print_facts(record.facts)


def _setting(name: str, value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{key} {part}" for key, part in value.items() if key != "name" and part is not None)
        return f"{name} {value.get('name', '')} ({inner})"
    return f"{name} {'none' if value is None else value}"
