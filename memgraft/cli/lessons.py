"""A lesson of a store as JSON and as text; `learn` ends with it and `show` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memgraft.cli.console import first_line, plain, print_table, say, short

if TYPE_CHECKING:
    from memgraft.store import MemoryStore, Overlap, Record
    from memgraft.store.record import FactRecord


def describe(store: MemoryStore, prefix: str) -> dict[str, Any]:
    """Everything that a store knows of one lesson, as JSON. StoreError when there is none, or it is damaged."""
    from memgraft.store.manifest import changes_name

    commit = store.commit(prefix)
    id = commit.id
    return {
        "id": id,
        "message": commit.message,
        "active": id in store.active(),
        "history": [{"op": entry.op, "when": entry.when} for entry in store.history() if entry.commit == id],
        "data_sha256": commit.data_sha256,
        "recipe": dict(commit.recipe),
        "cues": None if commit.cues is None else int(commit.cues.opens.sum()),
        "anchors": None if commit.cues is None or commit.cues.anchors is None else len(commit.cues.anchors),
        "rows": {table: len(rows) for table, rows in commit.changes.items()},
        "bytes": (store.path / changes_name(id)).stat().st_size,
        "record": dict(commit.record),
        "later_overlaps": [overlap_json(overlap) for overlap in store.overlaps(id)],
    }


def overlap_json(overlap: Overlap) -> dict[str, Any]:
    """An overlap with another lesson, as JSON."""
    return {"lesson": overlap.commit, "message": overlap.message, "shared_slots": overlap.shared_slots, "l2": overlap.l2}


def print_lesson(lesson: dict[str, Any]) -> None:
    """What a lesson taught and wrote."""
    record = record_of(lesson)
    if record.facts:
        print_facts(record.facts)
        say("")
    say(summary(lesson, record))
    for text in (*earlier_overlaps(record), *superseded_nothing(record)):
        say(text)
    say(f"lesson {short(lesson['id'])}: {first_line(lesson['message'])}")


def record_of(lesson: dict[str, Any]) -> Record:
    """The record in what `describe` gave."""
    from memgraft.store import Record

    return Record.model_validate(lesson["record"])


def print_facts(facts: Sequence[FactRecord]) -> None:
    """One line a fact: whether it was learned, what was asked and expected, what the model said before and after."""
    columns = ("learned", "fact", "question", "expected", "before", "after")
    rows = [("yes" if f.learned else "no", f.name, f.question, f.expected, f.before, f.after) for f in facts]
    print_table(columns, rows)


def summary(lesson: dict[str, Any], record: Record) -> str:
    """Lines of numbers: facts, rows, bytes, time."""
    facts = record.facts
    lines = []
    if facts:
        learned, unseen = sum(fact.learned for fact in facts), sum(fact.unseen_wording for fact in facts)
        asked = "all" if unseen == len(facts) else f"{unseen} of them"
        lines.append(f"{learned} of {len(facts)} facts learned ({asked} asked in a wording that was not taught)")
    rows = sum(lesson["rows"].values())
    per_batch = "" if record.rows_per_batch is None else f", {record.rows_per_batch:.1f} per {'fact' if facts else 'example'}"
    by_table = ", ".join(f"{count:,} in table {table}" for table, count in lesson["rows"].items())
    tables = f" ({by_table})" if len(lesson["rows"]) > 1 else ""
    lines.append(f"{rows:,} rows written{tables}{per_batch}; {human_bytes(lesson['bytes'])}")
    if lesson["cues"] is None:
        lines.append("every text reads it: not all that was taught has cues")
    elif lesson["anchors"] is None:
        lines.append(f"read where a fact's subject came up ({lesson['cues']:,} cues), and nowhere else")
    else:
        cues, anchors = lesson["cues"], lesson["anchors"]
        lines.append(
            f"read where a fact's subject came up ({cues:,} cues) and its answer is asked for ({anchors:,} anchors), and nowhere else"
        )
    if record.seconds is not None:
        lines.append(f"taught in {record.seconds:.1f} s")
    if not record.overlaps:
        lines.append("no overlap with earlier lessons")
    return "\n".join(lines)


def earlier_overlaps(record: Record) -> list[str]:
    """A line for each earlier lesson that is read together with this one."""
    overlaps = [overlap.model_dump() for overlap in record.overlaps]
    return overlap_lines(overlaps, "wrote to {slots} slots of the earlier lesson")


def superseded_nothing(record: Record) -> list[str]:
    """A line for each fact that was to replace one that no active lesson had: mostly a slip of the pen."""
    return [
        f"{plain(id)} supersedes {plain(old)}, but no active lesson taught a fact of that id: nothing was closed"
        for id, old in record.superseded_nothing.items()
    ]


def overlap_lines(overlaps: list[dict[str, Any]], text: str) -> list[str]:
    """A line for each lesson that is read together with this one: the text with the number of slots where they share any."""
    return [f"{_together(o['shared_slots'], text)} {short(o['lesson'])}: {first_line(o['message'])}" for o in overlaps]


def _together(slots: int | None, text: str) -> str:
    return "may be read in the same questions as" if slots is None else text.format(slots=f"{slots:,}")


def human_bytes(size: float) -> str:
    """A size in the unit that suits it."""
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def print_history(lesson: dict[str, Any]) -> None:
    """All that `show` prints of a lesson beside its facts."""
    say(f"lesson {lesson['id']}" + ("" if lesson["active"] else " (reverted)"))
    done = {"learn": "learned", "revert": "reverted", "gc": "removed"}
    for entry in lesson["history"]:
        say(f"{done[entry['op']]} {entry['when']}")
    say(f"data    SHA-256 {lesson['data_sha256']}")
    say("")
    for line in lesson["message"].splitlines():
        say("    " + plain(line))
    say("")
