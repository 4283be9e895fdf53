"""`memgraft tag`: names for points of a store's history."""

from __future__ import annotations

from typing import Annotated

import typer

from memgraft.cli.console import print_json, print_table, remark, say
from memgraft.cli.options import POINT, Json, Store
from memgraft.errors import DataError


def tag(
    store: Store,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The tag; without one, all are listed.", show_default=False)] = None,
    point: Annotated[str, typer.Argument(metavar="[POINT]", help=f"What it names: {POINT}.")] = "now",
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Remove the tag.")] = False,
    json: Json = False,
) -> None:
    """Name the memory as it is now, or as it was. `gc` keeps what a tag needs."""
    from memgraft.store import MemoryStore

    opened = MemoryStore.open(store)
    if name is None:
        if delete:
            raise DataError("--delete needs the NAME of a tag")
    elif delete:
        if point != "now":
            raise DataError(f"--delete removes the tag, wherever it is: leave {point!r} out")
        opened.untag(name)
    else:
        opened.tag(name, point)
    tags = opened.tags()
    if json:
        print_json({"store": str(store), "tags": tags})
    elif name is not None:
        say(
            f"removed the tag {name}"
            if delete
            else f"{name} names the memory after {tags[name]} of {len(opened.history())} history entries"
        )
    elif tags:
        rows = [(tag, position, len(opened.manifest.active(position))) for tag, position in tags.items()]
        print_table(("tag", "history entries", "active lessons"), rows, numbers=("history entries", "active lessons"))
    else:
        remark(f"{store} has no tags yet; make one with `memgraft tag {store} NAME`")
