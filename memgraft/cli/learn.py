"""`memgraft learn`: a data file in, a lesson in the store out, or the store as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memgraft.cli.check import FORGOT, background_probe, read_probes
from memgraft.cli.console import print_json, remark, short
from memgraft.cli.options import (
    MOST_SEED,
    BaseModel,
    Device,
    Dtype,
    Json,
    Store,
    TrustRemoteCode,
    load_grafted,
    parse_limit,
    parse_tolerance,
    writing,
)
from memgraft.cli.progress import Stages, TeachingProgress
from memgraft.cli.recipes import build_recipe
from memgraft.cli.running import told
from memgraft.cli.stopping import Stopped, unstoppable
from memgraft.errors import DataError, GateError

if TYPE_CHECKING:
    from memgraft.commits import DataFile
    from memgraft.store import MemoryStore

RankingName = Literal["tfidf", "kl", "kl-accesses", "tf", "all", "random"]
WriterName = Literal["sgd", "adam", "least-interference"]


def learn(
    store: Store,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="What to teach, .jsonl or .txt.", show_default=False)],
    message: Annotated[str, typer.Option("--message", "-m", help="What the lesson is about, for the log.", show_default=False)],
    ranking: Annotated[
        RankingName | None, typer.Option(help="Rule that scores the slots a batch reads in memory layers.", show_default="tfidf")
    ] = None,
    t: Annotated[
        str | None,
        typer.Option(
            "--t",
            parser=parse_limit,
            metavar="N|none",
            help="Slots of memory layers that may change in a step; none: every slot with a positive score.",
            show_default="1000",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            parser=parse_limit,
            metavar="N|none",
            help="Rows per fact, or part of a text, that a lesson of memory layers keeps, on average; none: all. "
            "Facts with anchors keep theirs.",
            show_default="84",
        ),
    ] = None,
    writer: Annotated[WriterName | None, typer.Option(help="Rule that changes them.", show_default="least-interference")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the writer.", show_default="the writer's own")] = None,
    mu: Annotated[
        float | None,
        typer.Option("--mu", help="How much dearer it gets to change what the background reads, in memory layers.", show_default="30"),
    ] = None,
    passes: Annotated[
        int | None, typer.Option(help="Times that everything is taught, at most.", show_default="6 for facts with anchors, else 10")
    ] = None,
    until_loss: Annotated[
        float | None, typer.Option(help="Skip an example in later passes once its loss is this low.", show_default="never")
    ] = None,
    wordings: Annotated[int | None, typer.Option(help="Wordings a fact in each pass.", show_default="4")] = None,
    scope: Annotated[
        Literal["answers", "cues", "everywhere"] | None,
        typer.Option(
            help="Where the lesson is read: where the subject of one of its facts came up and its answer is asked for, "
            "all after the subject, or everywhere.",
            show_default="answers, where each fact has cues",
        ),
    ] = None,
    loss: Annotated[
        Literal["answer", "all"] | None,
        typer.Option(
            help="Tokens that carry the loss; with all, facts have no cues, and every text reads the lesson.", show_default="answer"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MOST_SEED, help="Of order and wordings.", show_default="0")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="All of these settings, or a lesson's as `show --json` prints it; options win.", show_default=False
        ),
    ] = None,
    no_test: Annotated[bool, typer.Option("--no-test", help="Don't ask the facts before and after the lesson.")] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Round the lesson's rows to bfloat16: about two thirds of the size for facts, half for all else.")
    ] = False,
    keep_data: Annotated[bool, typer.Option("--keep-data", help="Keep the data file in the store, to teach the lesson again.")] = False,
    gate: Annotated[
        list[str],
        typer.Option(
            "--gate",
            metavar="PROBE",
            help="What must not get worse by the lesson, as `check --probe` has it, or the lesson is not kept and the exit code is 2. "
            "May be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 (typer copies it)
    tolerance: Annotated[
        float | None,
        typer.Option(
            parser=parse_tolerance,
            metavar="X",
            help="How much worse a gate's mean may get, in its own unit.",
            show_default="0; drift is only reported",
        ),
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How often the lesson's progress is saved in the store.")
    ] = 300.0,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--restart",
            help="Go on with a lesson that was stopped, to the same bits, or begin it anew.",
            show_default="neither is begun beside a stopped lesson",
        ),
    ] = None,
    model: BaseModel = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Teach a data file and add the lesson to the store.

    Whatever stops it, an error, Ctrl-C or SIGTERM, leaves the store as it was, but for a checkpoint of a long lesson to go on from.
    A lesson that a gate refuses leaves none: resumed, it would be refused again.
    """
    from memgraft.store.manifest import check_message

    check_message(message)  # before anything is loaded
    if tolerance is not None and not gate:
        raise DataError("--tolerance is of a --gate; name one, or leave it out")
    _open(store)
    from memgraft.data import Fact, read_examples

    examples = read_examples(data)
    to_keep = _data_file(data) if keep_data else None
    settings = {
        "ranking": ranking,
        "t": t,
        "rows": rows,
        "passes": passes,
        "until_loss": until_loss,
        "wordings": wordings,
        "scope": scope,
        "loss": loss,
        "seed": seed,
        "row_dtype": "bfloat16" if bf16 else None,
    }
    chosen = build_recipe(recipe, settings, writer=writer, learning_rate=learning_rate, background_weight=mu)
    probes = read_probes(gate)
    from memgraft.checkpoints import Checkpoints
    from memgraft.gate import Gate
    from memgraft.learning import learn as learn_lesson
    from memgraft.learning import resolved

    kept = ""
    checkpoints: Checkpoints | None = None
    try:
        with Stages() as stages:
            stages.stage("loading the base model")
            grafted = load_grafted(store, model=model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            with writing(grafted, store) as own:
                facts = all(isinstance(example, Fact) for example in examples.examples)
                stages.stage("asking what is known already" if facts and not no_test else "preparing")
                chosen = resolved(chosen, grafted, examples.examples)
                progress = TeachingProgress(stages, passes=chosen.turns, unit="facts" if facts else "examples")
                checkpoints = Checkpoints(own, every=checkpoint_every, resume=resume)
                if resume and not checkpoints.path.exists():
                    remark("--resume: no lesson was stopped in this store, so this one begins at its start")
                commit = learn_lesson(
                    grafted,
                    examples,
                    message=message,
                    recipe=chosen,
                    test=not no_test,
                    keep=to_keep,
                    gate=Gate([probe or background_probe(grafted, str(store)) for probe in probes], tolerance) if probes else None,
                    checkpoints=checkpoints,
                    on_step=progress,
                )
                with unstoppable():
                    grafted.save(store)
                    kept = commit.id
                    checkpoints.remove()
    except KeyboardInterrupt as interrupt:
        left = "; go on with --resume" if checkpoints is not None and checkpoints.path.exists() else ""
        outcome = f"the lesson {short(kept)} was saved already" if kept else f"the store is as it was before the lesson{left}"
        raise Stopped(interrupt, outcome) from interrupt
    except GateError as error:
        print(told(error), file=sys.stderr)
        raise typer.Exit(FORGOT) from error

    from memgraft.cli.lessons import describe, print_lesson

    if commit.cues is not None and commit.cues.anchors is not None:
        given = {"--ranking": ranking, "--t": t, "--rows": rows, "--mu": mu}
        if of_layers := [option for option, value in given.items() if value is not None]:
            remark(f"{', '.join(of_layers)}: of memory layers, without effect on facts with anchors; --scope cues teaches them in layers")
    lesson = describe(_open(store), commit.id)
    if json:
        print_json(lesson)
    else:
        print_lesson(lesson)


def _data_file(path: Path) -> DataFile:
    from memgraft.commits import DataFile

    try:
        return DataFile.read(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error


def _open(store: Path) -> MemoryStore:
    from memgraft.store import MemoryStore

    return MemoryStore.open(store)
