"""Which facts of which lessons are closed: those that another active lesson superseded. The old answer is not read beside the new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FIELDS = ("taught", "replaced", "ids")  # of a record that are read here


def facts_taught(record: Mapping[str, Any]) -> dict[str, str | None]:
    """Id of each fact of a lesson → id of the one that it superseded. A record may come from elsewhere: what is no id is left out."""
    taught = record.get("taught")
    if not isinstance(taught, dict):
        return {}
    return {id: superseded if isinstance(superseded, str) else None for id, superseded in taught.items()}


def replaced_by(record: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Id of each fact of a lesson → ids of those that it closes: the one that it superseded, then what that one had superseded by then.

    The second part is the record's own, so that a fact stays closed where a lesson between is taken back.
    """
    chains = record.get("replaced")
    chains = chains if isinstance(chains, dict) else {}
    found = {}
    for id, old in facts_taught(record).items():
        earlier = chains.get(id)
        older = [each for each in earlier if isinstance(each, str)] if isinstance(earlier, list) else []
        found[id] = () if old is None else (old, *older)
    return found


def chains_of(records: Iterable[Mapping[str, Any]], olds: Iterable[str]) -> dict[str, list[str]]:
    """Of each of these ids, the ids of the facts that active lessons, in order, say it superseded; the newest first."""
    known: dict[str, list[str]] = {}
    for record in records:
        for id, older in replaced_by(record).items():
            known.setdefault(id, []).extend(older)

    def chain(old: str) -> list[str]:
        found: dict[str, None] = {}
        waiting = [old]
        while waiting:
            older = [each for each in known.get(waiting.pop(), ()) if each not in found]
            found.update(dict.fromkeys(older))
            waiting += older
        found.pop(old, None)
        return list(found)

    return {old: chain(old) for old in olds}


def closed_facts(records: Mapping[str, Mapping[str, Any]], superseded: Iterable[str] = ()) -> dict[str, frozenset[int]]:
    """For each active lesson, the facts that open nothing any more, as its cues number them.

    Args:
        records: of the active lessons, in order, by id.
        superseded: ids of facts that are superseded as well.
    """
    taught = {id: replaced_by(record) for id, record in records.items()}
    by: dict[str, list[str]] = {}  # fact → the lessons that supersede it, in order
    for id, facts in taught.items():
        for old in dict.fromkeys(each for olds in facts.values() for each in olds):
            by.setdefault(old, []).append(id)
    given, places = set(superseded), {id: place for place, id in enumerate(records)}

    def is_closed(id: str, fact: Any) -> bool:
        def counts(other: str) -> bool:  # the later one counts of two that supersede each other
            back = not taught[other].keys().isdisjoint(old for olds in taught[id].values() for old in olds)
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
        theirs = replaced_by(record)
        if theirs.keys().isdisjoint(old for old in taught.values() if old is not None):  # else the later one of the two counts
            found.update({old: (lesson, new) for new, olds in theirs.items() for old in olds if old in taught})
    return found
