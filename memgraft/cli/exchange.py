"""`memgraft export` and `memgraft import`: one lesson as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from memgraft.cli.console import first_line, print_json, say, short
from memgraft.cli.lessons import human_bytes, overlap_json, overlap_lines
from memgraft.cli.options import Json, Lesson, Store


def export(
    store: Store,
    lesson: Lesson,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to make, .safetensors.", show_default=False)],
    json: Json = False,
) -> None:
    """Write a lesson to a file, for another store of the same base and keys."""
    from memgraft.store import MemoryStore

    commit = MemoryStore.open(store).export(lesson, output)
    size = output.stat().st_size
    if json:
        print_json({"id": commit.id, "message": commit.message, "file": str(output), "bytes": size})
    else:
        say(f"wrote the lesson {short(commit.id)} to {output} ({human_bytes(size)})")


def import_(
    store: Store,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` wrote.", show_default=False)],
    overlap: Annotated[
        Literal["refuse", "sum"], typer.Option(help="Where it is read together with active lessons: refuse it, or add it to them.")
    ] = "refuse",
    json: Json = False,
) -> None:
    """Add a lesson from a file."""
    from memgraft.store import MemoryStore

    opened = MemoryStore.open(store)
    report = opened.import_(file, overlap)
    message = opened.header(report.commit)["message"]
    overlaps = [overlap_json(found) for found in report.overlaps]
    if json:
        print_json({"id": report.commit, "message": message, "rows": report.rows, "overlaps": overlaps})
        return
    for line in overlap_lines(overlaps, "added to {slots} slots of"):
        say(line)
    say(f"lesson {short(report.commit)}: {first_line(message)} ({report.rows:,} rows)")
