"""Reading a whole store to find what is wrong with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from memgraft.errors import StoreError
from memgraft.store import folder, lessons
from memgraft.store import manifest as layout

if TYPE_CHECKING:
    from memgraft.store.manifest import HistoryEntry, Manifest
    from memgraft.store.reading import StoreReader


def problems(store: StoreReader, manifest: Manifest) -> Iterator[str]:
    """What is wrong with a store, a line each: sizes, digests, ids, numbers, and what is kept twice but differs."""
    wrong_sizes = list(folder.size_problems(store.path, manifest))
    yield from wrong_sizes
    if wrong_sizes:
        return
    checks = (functools.partial(folder.read_spec, store.path, manifest), store.memory_tensors, store.usage_tensors, store.background_texts)
    for check in checks:
        yield from _problem(check)
    last = {entry.commit: entry for entry in manifest.history}
    for entry in last.values():
        if entry.op != "gc":
            yield from _lesson_problems(store, entry)
    for name in manifest.files:
        if name.startswith(layout.RECORDS):
            yield from _problem(functools.partial(store.read_record, name))
        elif name.startswith(layout.DATA):
            yield from _problem(functools.partial(store.read_data, name))


def _problem(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except StoreError as error:
        yield str(error)


def _lesson_problems(store: StoreReader, entry: HistoryEntry) -> Iterator[str]:
    where = store.path / layout.changes_name(entry.commit)
    try:
        lesson = store.commit(entry.commit)
        lessons.check_header_copy(lessons.read_header_copy(where), lesson, str(where))
    except StoreError as error:
        yield str(error)
        return
    if (lesson.message, lesson.rows) != (entry.message, entry.rows):
        yield f"{store.path / layout.MANIFEST}: the history's message or rows of {entry.commit[:12]} are not the lesson's own"
