"""Which facts of which lessons are closed: those that another active lesson superseded. The old answer is not read beside the new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def facts_taught(record: Mapping[str, Any]) -> dict[str, str | None]:
    """Id of each fact of a lesson → id of the one that it superseded. A record may come from elsewhere: what is no id is left out."""
    taught = record.get("taught")
    if not isinstance(taught, dict):
        return {}
    return {id: superseded if isinstance(superseded, str) else None for id, superseded in taught.items()}


def closed_facts(records: Mapping[str, Mapping[str, Any]], superseded: Iterable[str] = ()) -> dict[str, frozenset[int]]:
    """For each active lesson, the facts that open nothing any more, as its cues number them.

    Args:
        records: of the active lessons, in order, by id.
        superseded: ids of facts that are superseded as well.
    """
    taught = {id: facts_taught(record) for id, record in records.items()}
    by: dict[str, list[str]] = {}  # fact → the lessons that supersede it, in order
    for id, facts in taught.items():
        for old in facts.values():
            if old is not None:
                by.setdefault(old, []).append(id)
    given, places = set(superseded), {id: place for place, id in enumerate(records)}

    def is_closed(id: str, fact: Any) -> bool:
        def counts(other: str) -> bool:  # the later one counts of two that supersede each other
            back = not taught[other].keys().isdisjoint(old for old in taught[id].values() if old is not None)
            return other != id and not (back and places[id] > places[other])

        return isinstance(fact, str) and (fact in given or any(map(counts, by.get(fact, ()))))

    closed = {}
    for id, record in records.items():
        ids = record.get("ids")
        numbered = ids * 2 if isinstance(ids, list) else []  # as they stand, and in lower case
        closed[id] = frozenset(number for number, fact in enumerate(numbered) if is_closed(id, fact))
    return closed


def closing(records: Mapping[str, Mapping[str, Any]], taught: Mapping[str, str | None]) -> dict[str, tuple[str, str]]:
    """Facts that a lesson yet to be taught would hold closed: id of each → the active lesson that supersedes it, and by which fact.

    Args:
        records: of the active lessons, in order, by id.
        taught: id of each fact of the new lesson → id of the one that it supersedes.
    """
    found = {}
    for lesson, record in records.items():
        theirs = facts_taught(record)
        if theirs.keys().isdisjoint(old for old in taught.values() if old is not None):  # else the later one of the two counts
            found.update({old: (lesson, new) for new, old in theirs.items() if old is not None and old in taught})
    return found
