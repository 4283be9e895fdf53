"""`memgraft log`: what was learned and reverted."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated

import typer

from memgraft.cli.console import first_line, print_json, print_table, remark, short
from memgraft.cli.options import Json, Store


def log(
    store: Store,
    number: Annotated[int | None, typer.Option("-n", min=1, metavar="N", help="Only the last N entries.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """List the lessons of a store, the newest first. A lesson that was reverted is no longer active."""
    from memgraft.store import MemoryStore

    opened = MemoryStore.open(store)
    active = set(opened.active())
    entries = opened.history()[::-1][:number]
    if json:
        keys = ("op", "when", "message", "rows")
        fields = [{"id": e.commit, **{key: getattr(e, key) for key in keys}, "active": e.commit in active} for e in entries]
        print_json({"store": str(store), "history": fields})
    elif entries:
        rows = []
        for entry in entries:
            state = "yes" if entry.commit in active else "no"
            rows.append((short(entry.commit), entry.op, _utc(entry.when), f"{entry.rows:,}", state, first_line(entry.message)))
        print_table(("lesson", "", "when (UTC)", "rows", "active", "message"), rows, numbers=("rows",))
    else:
        remark(f"{store} has no lessons yet; teach it with `memgraft learn {store} FACTS.jsonl -m MESSAGE`")


def _utc(when: str) -> str:
    """A stored time for people; as it stands where it is no ISO time."""
    try:
        return datetime.fromisoformat(when).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return when
