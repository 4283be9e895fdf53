"""`memgraft check`: has the model forgotten anything?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memgraft.cli.console import print_json, print_table, say
from memgraft.cli.options import BaseModel, Device, Dtype, Json, Store, TrustRemoteCode, load_grafted, parse_tolerance
from memgraft.cli.progress import Stages
from memgraft.errors import DataError

if TYPE_CHECKING:
    from memgraft.grafted import GraftedModel
    from memgraft.probes import Change, DriftProbe, Probe

FORGOT = 2
BACKGROUND = "background"


def check(
    store: Store,
    probe: Annotated[
        list[str],
        typer.Option(
            "--probe",
            metavar="SPEC",
            help="What must not get worse, [KIND:]FILE[#LIMIT]; kinds: qa, nll, choice (JSONL), text, drift (.txt, JSONL). "
            "Or `background`: drift on the part of the background that usage was not counted on. May be repeated.",
            show_default=False,
        ),
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(
            parser=parse_tolerance,
            metavar="X",
            help="How much worse a mean may get, in its own unit.",
            show_default="0; drift is only reported",
        ),
    ] = None,
    model: BaseModel = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Measure probes with the memory off and on. Exit code 2 means that something was forgotten.

    Forgotten is what got worse by more than the tolerance and, by a paired bootstrap interval, not by chance.
    """
    from memgraft.gate import forgot as worse
    from memgraft.probes import run_probes

    probes = read_probes(probe)
    changes = []
    with Stages() as stages:
        stages.stage("loading the base model")
        grafted = load_grafted(store, model=model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        for number, given in enumerate(probes):
            ready = given or background_probe(grafted, str(store))
            stages.stage(f"probe {number + 1} of {len(probes)}: {ready.name}")
            changes += run_probes(grafted, [ready])
    forgot = [worse(change, tolerance) for change in changes]
    if json:
        measured = [{**change.summary(), "worse": worse} for change, worse in zip(changes, forgot, strict=True)]
        lessons = len(grafted.history.active())
        print_json({"store": str(store), "lessons": lessons, "tolerance": tolerance, "probes": measured, "forgot": any(forgot)})
    else:
        _print(changes, forgot)
    if any(forgot):
        raise typer.Exit(FORGOT)


def read_probes(specs: list[str]) -> list[Probe | None]:
    """The probes that a command was given; None stands for `background`, which needs the model."""
    from memgraft.probes import load_probe

    return [None if spec == BACKGROUND else load_probe(spec) for spec in specs]


def background_probe(model: GraftedModel, store: str) -> DriftProbe:
    """Drift on the part of the background that usage was not counted on. DataError where there is none."""
    from memgraft.probes import DriftProbe

    if model.background is None:
        raise DataError(f"{store}: the store has no background text; give a probe file")
    counted, held_out = model.background.split(model.tokenizer)
    if counted == held_out:
        raise DataError(f"{store}: the background is too short to keep a part for measuring; give a probe file")
    return DriftProbe(name=BACKGROUND, rows=tuple(tuple(row) for row in held_out))


def _print(changes: list[Change], forgot: list[bool]) -> None:
    rows = []
    for change, worse in zip(changes, forgot, strict=True):
        interval = "" if change.low is None or change.high is None else f"{change.low:+.4f} to {change.high:+.4f}"
        cells = (f"{change.before:.4f}", f"{change.after:.4f}", f"{change.delta:+.4f}", interval, change.n)
        rows.append((change.name, f"{change.metric} ({change.unit})", *cells, "forgot" if worse else ""))
    level = f"{changes[0].level:.0%} interval"
    columns = ("probe", "metric", "before", "after", "Δ", level, "items", "")
    print_table(columns, rows, numbers=("before", "after", "Δ", level, "items"))
    bad = sum(forgot)
    say(f"{bad} of {len(rows)} probes got worse" if bad else "nothing got worse beyond chance and tolerance")
