"""`memgraft doctor`: is the installation sound, and is the store?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memgraft.cli.console import print_json, print_table, say
from memgraft.cli.lessons import human_bytes
from memgraft.cli.options import BaseModel, Json, TrustRemoteCode
from memgraft.cli.progress import Stages
from memgraft.cli.running import FAILED
from memgraft.errors import DataError


def doctor(
    store: Annotated[Path | None, typer.Argument(metavar="[STORE]", help="Memory store to examine as well.", show_default=False)] = None,
    load: Annotated[bool, typer.Option("--load", help="Load the base model and compare it with the one the store was made for.")] = False,
    model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Examine the installation, and a store.

    Versions and speed; of a store, whether every file is whole, how its slots are used and how old its background usage is.
    Exit code 1 means that something is wrong with the store or its base model.
    """
    from memgraft import doctor as examination

    if load and store is None:
        raise DataError("--load needs a store to compare the base model with")
    if model is not None and not load:
        raise DataError("--model is for --load; leave it out, or compare that model with the store by --load")
    opened = None
    if store is not None:
        from memgraft.store import MemoryStore

        opened = MemoryStore.open(store)
    report: dict[str, Any] = {}
    with Stages() as stages:
        stages.stage("measuring")
        report["versions"] = examination.versions()
        report["machine"] = examination.machine()
        report["hint"] = examination.dtype_hint(report["machine"]["product_ms"])
        if opened is not None:
            stages.stage("reading the store")
            report["store"] = examination.examine(opened)
            if load:
                stages.stage("loading the base model")
                report["store"]["base_mismatch"] = examination.base_mismatch(opened, model, trust_remote_code)
    if json:
        print_json(report)
    else:
        _print_installation(report)
        if "store" in report:
            say("")
            _print_store(report["store"])
    if "store" in report and (report["store"]["faults"] or report["store"].get("base_mismatch")):
        raise typer.Exit(FAILED)


def _print_installation(report: dict[str, Any]) -> None:
    installed = {name: version for name, version in report["versions"].items() if version}
    missing = [name for name, version in report["versions"].items() if not version]
    say("versions     " + ", ".join(f"{name} {version}" for name, version in installed.items()))
    if missing:
        say("not there    " + ", ".join(missing) + " (optional)")
    machine = report["machine"]
    say(f"machine      {machine['cpus']} CPUs, {machine['torch_threads']} torch threads, {machine['accelerator'] or 'no CUDA device'}")
    say(f"dtype        {report['hint']}")


def _print_store(store: dict[str, Any]) -> None:
    lessons, background = store["lessons"], store["background"]
    say(f"store        {store['path']}, {human_bytes(store['bytes'])}, made with memgraft {store['made_with']}")
    say(f"base         {store['model']} ({store['dtype']}){_base_verdict(store)}")
    layers = ", ".join(str(layer) for layer in store["layers"])
    answers = "no answer layer" if store["answer_layer"] is None else f"answers in front of block {store['answer_layer']}"
    say(f"memory       in front of block {layers}, {answers}; {store['slots']:,} slots, {store['heads']} heads, top {store['top_k']}")
    say(f"lessons      {lessons['active']} active of {lessons['learned']} learned")
    say("background   " + ", ".join(f"{name} {value}" for name, value in background.items()))
    if store["faults"]:
        for fault in store["faults"]:
            say(f"fault        {fault}")
        return
    say("files        all whole")
    say(f"usage        {store['usage_age']}")
    behind = store["behind_cues"]
    if behind["lessons"]:
        say(f"rows         {behind['rows']:,} of {behind['lessons']:,} lessons are read behind cues, and take no slot of those below")
    columns = ("table", "background tokens", "slots used", "accesses by the top 1% of slots", "rows written", "of them read by background")
    rows = [
        (
            name,
            f"{table['background_tokens']:,}",
            f"{table['slots_used']:.1%}",
            f"{table['hub_accesses']:.1%}",
            f"{table['rows_written']:,}",
            f"{table['rows_also_read_by_background']:.1%}",
        )
        for name, table in store["tables"].items()
    ]
    print_table(columns, rows, numbers=columns[1:])


def _base_verdict(store: dict[str, Any]) -> str:
    if "base_mismatch" not in store:
        return "; not compared, see --load"
    return f": not the one of the store: {store['base_mismatch']}" if store["base_mismatch"] else ": the one that the store was made for"
