"""`memgraft verify` and `memgraft gc`: is a store whole, and what of it can go?"""

from __future__ import annotations

import typer

from memgraft.cli.console import print_json, say, short
from memgraft.cli.lessons import human_bytes
from memgraft.cli.options import Json, Store
from memgraft.cli.running import FAILED


def verify(store: Store, json: Json = False) -> None:
    """Read the whole store and check every digest, id and number. Exit code 1 means that something is wrong."""
    from memgraft.store import MemoryStore

    opened = MemoryStore.open(store)
    faults = opened.verify()
    if json:
        print_json({"store": str(store), "files": len(opened.manifest.files), "faults": faults})
    else:
        for fault in faults:
            say(fault)
        say(f"{len(opened.manifest.files):,} files, " + (f"{len(faults)} faults" if faults else "all whole"))
    if faults:
        raise typer.Exit(FAILED)


def gc(store: Store, json: Json = False) -> None:
    """Remove the files of reverted lessons for good, unless a tag needs them. The log keeps their entries."""
    from memgraft.store import MemoryStore

    report = MemoryStore.open(store).gc()
    if json:
        print_json({"store": str(store), "lessons": list(report.lessons), "bytes": report.bytes})
        return
    for id in report.lessons:
        say(f"removed {short(id)}")
    count = len(report.lessons)
    say(f"{count} reverted lesson{'s' if count != 1 else ''} removed, {human_bytes(max(0, report.bytes))} freed")
