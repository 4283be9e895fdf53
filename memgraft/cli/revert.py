"""`memgraft revert`: take a lesson back."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from memgraft.cli.console import first_line, print_json, say, short
from memgraft.cli.lessons import overlap_json, overlap_lines
from memgraft.cli.options import BaseModel, Device, Dtype, Json, Lesson, RetaughtData, Store, TrustRemoteCode, load_grafted, writing
from memgraft.cli.progress import Stages
from memgraft.errors import DataError


def revert(
    store: Store,
    lesson: Lesson,
    overlap: Annotated[
        Literal["keep", "refuse", "re-teach"],
        typer.Option(help="Later lessons on its slots: keep them as they are, refuse to revert, or teach them again without it."),
    ] = "keep",
    data: RetaughtData = [],  # noqa: B006 (typer copies it)
    model: BaseModel = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Take a lesson back.

    The memory becomes, bit for bit, the sum of the other lessons. The lesson's files stay in the store, so that it can be
    inspected. Later lessons that are read together with this one are named: they were learned on top of it.
    """
    from memgraft.store import MemoryStore

    if data and overlap != "re-teach":
        raise DataError("--data is for --overlap re-teach; leave it out")
    if (model or dtype or trust_remote_code) and overlap != "re-teach":
        raise DataError("--model, --dtype and --trust-remote-code are for --overlap re-teach, which alone loads the model; leave them out")
    opened = MemoryStore.open(store)
    again = {}
    if overlap == "re-teach":
        id = opened.resolve(lesson)
        with Stages() as stages:
            stages.stage("loading the base model")
            grafted = load_grafted(store, model=model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            from memgraft.reteaching import revert as revert_teaching

            with writing(grafted, store):
                stages.stage("teaching again")
                report, taught = revert_teaching(grafted, id, overlap=overlap, data=data)
                grafted.save(store)
        again = {old: new.id for old, new in taught.items()}
        opened = MemoryStore.open(store)
    else:
        report = opened.revert(lesson, overlap)
    messages = {entry.commit: entry.message for entry in opened.history()}  # not from the lesson, which may be damaged
    message = messages[report.commit]
    remaining = opened.active()
    overlaps = [overlap_json(overlap) for overlap in report.overlaps]
    if json:
        left = [{"id": id, "message": messages[id]} for id in remaining]
        found = {"reverted": report.commit, "message": message, "rows": report.rows, "overlaps": overlaps, "taught_again": again}
        print_json({**found, "remaining": left})
        return
    say(f"reverted {short(report.commit)}: {first_line(message)} ({report.rows:,} rows)")
    for line in overlap_lines(overlaps, "took its part out of {slots} slots that are shared with"):
        say(line)
    for old, new in again.items():
        say(f"taught {short(old)} again as {short(new)}: {first_line(messages[new])}")
    if overlaps and not again:
        say(f"check what those lessons taught: `memgraft check {store} --probe FILE`")
    if remaining:
        say(f"{len(remaining)} lesson{'s' if len(remaining) > 1 else ''} remain{'s' if len(remaining) == 1 else ''}:")
        for id in remaining:
            say(f"  {short(id)} {first_line(messages[id])}")
    else:
        say("no lessons remain: the model is exactly its base again")
