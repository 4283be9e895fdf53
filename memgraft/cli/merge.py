"""`memgraft merge`: what another store learned, added to this one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from memgraft.cli.console import first_line, print_json, say, short
from memgraft.cli.options import BaseModel, Device, Dtype, Json, RetaughtData, Store, TrustRemoteCode, load_grafted, writing
from memgraft.cli.progress import Stages
from memgraft.errors import DataError


def merge(
    store: Store,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Store to take lessons from; it is not changed.", show_default=False)],
    overlap: Annotated[
        Literal["refuse", "sum", "re-teach"],
        typer.Option(help="Where lessons of both are read together: refuse to merge, sum them, or teach them again on top of each other."),
    ] = "refuse",
    data: RetaughtData = [],  # noqa: B006 (typer copies it)
    model: BaseModel = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Add what another store of the same base and keys learned and took back.

    Lessons that no text reads together merge exactly, in any order. What one store took back is taken back in both.
    """
    from memgraft.store import MemoryStore

    if data and overlap != "re-teach":
        raise DataError("--data is for --overlap re-teach; leave it out")
    if (model or dtype or trust_remote_code) and overlap != "re-teach":
        raise DataError("--model, --dtype and --trust-remote-code are for --overlap re-teach, which alone loads the model; leave them out")
    opened, theirs = MemoryStore.open(store), MemoryStore.open(other)
    messages = {entry.commit: entry.message for entry in (*theirs.history(), *opened.history())}
    again: dict[str, str] = {}
    if overlap == "re-teach":
        with Stages() as stages:
            stages.stage("loading the base model")
            grafted = load_grafted(store, model=model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            from memgraft.reteaching import merge as merge_teaching

            with writing(grafted, store):
                stages.stage("teaching again")
                report, taught = merge_teaching(grafted, theirs, data=data)
        again = {old: new.id for old, new in taught.items()}
    else:
        report = opened.merge(theirs, overlap)
    if json:
        print_json({"store": str(store), "other": str(other), **asdict(report), "taught_again": again})
        return
    for conflict in report.conflicts:
        shared = f"is read together with {short(conflict.other)} ({conflict.place})"
        say(f"{short(conflict.lesson)} {shared}: " + (f"taught again as {short(again[conflict.lesson])}" if again else "summed"))
    for verb, ids in (("learned", report.learned), ("reverted", report.reverted)):
        for id in ids:
            say(f"{verb} {short(id)} {first_line(messages[id])}")
    if not (report.learned or report.reverted):
        say("nothing to merge: the store has all of it")
