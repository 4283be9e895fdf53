"""`memgraft diff`: what lies between two points of a store's history."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from memgraft.cli.console import first_line, print_json, say, short
from memgraft.cli.options import POINT, Json, Store


def diff(
    store: Store,
    a: Annotated[str, typer.Argument(metavar="A", help=f"From: {POINT}.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="To, given in the same way.")] = "now",
    json: Json = False,
) -> None:
    """Show which lessons came and went between two points, and by how much the memory differs."""
    from memgraft.store import MemoryStore

    opened = MemoryStore.open(store)
    found = opened.diff(a, b)
    messages = {entry.commit: entry.message for entry in opened.history()}
    if json:
        print_json({"store": str(store), "from": a, "to": b, **asdict(found)})
        return
    for sign, ids in (("-", found.reverted), ("+", found.learned)):
        for id in ids:
            say(f"{sign} {short(id)} {first_line(messages[id])}")
    if found.reordered:
        say("the lessons that both have are added in another order")
    for name, table in found.tables.items():
        rows = f"{table.rows:,} row{'s differ' if table.rows != 1 else ' differs'}, norm {table.l2:.4g}"
        say(f"table {name}: " + (rows if table.rows else "no row differs"))
