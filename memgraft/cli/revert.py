"""`memgraft revert`: take a lesson back."""

from __future__ import annotations

from memgraft.cli.console import first_line, print_json, say, short
from memgraft.cli.lessons import overlap_json, overlap_lines
from memgraft.cli.options import Json, Lesson, Store


def revert(store: Store, lesson: Lesson, json: Json = False) -> None:
    """Take a lesson back.

    The memory becomes, bit for bit, the sum of the other lessons. The lesson's files stay in the store, so that it can be
    inspected. Later lessons that wrote to slots of this one are named: they were learned on top of it.
    """
    from memgraft.store import MemoryStore

    opened = MemoryStore.open(store)
    report = opened.revert(lesson)
    message = opened.header(report.commit)["message"]
    messages = {entry.commit: entry.message for entry in opened.history()}
    remaining = opened.active()
    overlaps = [overlap_json(overlap) for overlap in report.overlaps]
    if json:
        left = [{"id": id, "message": messages[id]} for id in remaining]
        print_json({"reverted": report.commit, "message": message, "rows": report.rows, "overlaps": overlaps, "remaining": left})
        return
    say(f"reverted {short(report.commit)}: {first_line(message)} ({report.rows:,} rows)")
    for line in overlap_lines(overlaps, "took its part out of {slots} slots that are shared with"):
        say(line)
    if overlaps:
        say(f"check what those lessons taught: `memgraft check {store} --probe FILE`")
    if remaining:
        say(f"{len(remaining)} lesson{'s' if len(remaining) > 1 else ''} remain{'s' if len(remaining) == 1 else ''}:")
        for id in remaining:
            say(f"  {short(id)} {first_line(messages[id])}")
    else:
        say("no lessons remain: the model is exactly its base again")
