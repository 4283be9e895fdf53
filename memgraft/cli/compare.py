"""`memgraft compare`: the memory and its rivals on one's own facts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memgraft.cli.check import BACKGROUND
from memgraft.cli.console import print_json, print_table, say
from memgraft.cli.options import MOST_SEED, Device, DtypeName, Json, TrustRemoteCode
from memgraft.cli.progress import Stages
from memgraft.errors import DataError, MemgraftError

if TYPE_CHECKING:
    from memgraft.comparison.measuring import AnyProbe
    from memgraft.comparison.methods import AnyMethod
    from memgraft.examples import Fact
    from memgraft.report import ComparisonPage

# Those of `comparison.grid`, which takes seconds to import.
METHODS = (
    "memory",
    "retrieval",
    "memory (tfidf, sgd)",
    "lora",
    "lora + replay",
    "full",
    "osf",
    "shira",
    "memory (cues)",
    "memory (no cues)",
)


def compare(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Facts to teach, .jsonl.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Hub id, folder or .gguf file.", show_default="the demo's small model")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            metavar="SPEC",
            help="What must not get worse, [KIND:]FILE[#LIMIT]; kinds: qa, nll, choice (JSONL), text. May be repeated.",
            show_default="common knowledge and prose that come with memgraft",
        ),
    ] = None,
    control: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Untaught facts of the same kind, asked as well.", show_default=False),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Time for all runs; what does not fit in is left out and named.")] = 60,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME", help=f"Only this one of {', '.join(METHODS)}. May be repeated.", show_default="all"),
    ] = None,
    background_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text that stands for what must be preserved.")] = 32768,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of wordings, order and new weights.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where runs and reports go.")] = Path("out/compare"),
    dtype: Annotated[
        DtypeName | None,
        typer.Option(
            "--dtype", help="Of the base model's weights.", show_default="as they are stored, or float32 on a CPU slow in 16 bits"
        ),
    ] = None,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Teach one's own facts with the memory, LoRA, full finetuning and others, and report what each learned and forgot.

    Writes report.html with report.md and report.json. Stopped, the same command goes on where it was.
    """
    from memgraft.asking import questions_of
    from memgraft.comparison.compare import facts_of, run_comparison
    from memgraft.comparison.grid import grid
    from memgraft.comparison.summary import summarise
    from memgraft.comparison.workshop import Workshop
    from memgraft.data import read_examples
    from memgraft.models import demo_model_path, load_model
    from memgraft.report import comparison_page, render_comparison

    examples = read_examples(data)
    facts = facts_of(examples)
    controls = facts_of(read_examples(control), "--control") if control else ()
    probes = _probes(probe)
    methods = grid()
    unknown = sorted(set(method or ()) - set(methods))
    if unknown:
        raise MemgraftError(f"no method is called {unknown[0]!r}: expected {', '.join(methods)}")
    chosen = {name: methods[name] for name in method or methods}
    _check_extras(each for settings in chosen.values() for each in settings)
    _check_writable(output)
    source = model or str(demo_model_path())
    with Stages() as stages:
        stages.stage("loading the model")
        loaded = load_model(source, dtype=dtype or "auto", device=device, trust_remote_code=trust_remote_code)
        workshop = Workshop(loaded.model, loaded.tokenizer, background_tokens=background_tokens, cache=output / "cache")

        def on_run(what: str) -> None:
            stages.stage(what)
            stages.note(what)

        comparison = run_comparison(
            workshop,
            facts,
            probes,
            chosen,
            runs_path=output / "runs.jsonl",
            identity={
                "model": source,
                "dtype": str(loaded.model.dtype).removeprefix("torch."),
                "device": loaded.model.device.type,
                "data": examples.sha256,
                "background_tokens": background_tokens,
            },
            seconds=60 * minutes,
            controls=controls,
            seed=seed,
            on_run=on_run,
        )
    environment = comparison.runs[0]["environment"]
    page = comparison_page(
        summarise(comparison.runs),
        title=f"memgraft compare: {data.name}",
        facts=[(row.question, fact.answers[0]) for row, fact in zip(questions_of(facts), facts, strict=True)],
        runs=comparison.runs,
        skipped=comparison.skipped,
        remarks=_remarks(facts, controls, probes),
        repeat=[_command(data, model, probe, control, minutes, method, background_tokens, seed, output, dtype, device, trust_remote_code)],
        model=model or Path(source).name,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        environment=f"{Path(source).name}, {environment['cpu']}, torch {environment['packages']['torch']}",
    )
    path = render_comparison(page, output)
    if json:
        print_json(page.model_dump(mode="json"))
    else:
        _print(page)
        say(f"\n{page.verdict}\n\n{path}")


def _check_extras(methods: Iterable[AnyMethod]) -> None:
    """MemgraftError, with the way to install it, for a library that will be needed hours later."""
    from memgraft.baselines import OSF, LoRA, Retrieval, SHiRA
    from memgraft.baselines.adapters import import_peft
    from memgraft.baselines.retrieval import import_bm25s
    from memgraft.report import check_extra

    check_extra()
    for method in methods:
        if isinstance(method, Retrieval):
            import_bm25s()
        elif isinstance(method, LoRA | OSF | SHiRA):
            import_peft()


def _check_writable(folder: Path) -> None:
    """Says at once what writing the first run would say after minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MemgraftError(f"{folder}: can't be made: {error.strerror}; name another folder with --output") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MemgraftError(f"{folder}: can't be written to; name another folder with --output")


def _probes(specs: list[str] | None) -> list[AnyProbe]:
    from importlib.resources import as_file, files

    from memgraft.probes import DriftProbe, QAProbe, load_probe

    if specs is None:
        with as_file(files("memgraft.demo")) as folder:
            questions, prose = load_probe(f"qa:{folder / 'common.jsonl'}"), load_probe(f"text:{folder / 'prose.txt'}")
        assert isinstance(questions, QAProbe)
        assert not isinstance(prose, DriftProbe)
        return [questions, prose]
    probes: list[AnyProbe] = []
    for spec in specs:
        probe = None if spec == BACKGROUND else load_probe(spec)
        if probe is None or isinstance(probe, DriftProbe):
            raise DataError(f"{spec}: a comparison has no drift probes; give the text as text:FILE")
        probes.append(probe)
    return probes


def _remarks(facts: Sequence[Fact], controls: Sequence[Fact], probes: Sequence[AnyProbe]) -> list[str]:
    from memgraft.asking import questions_of
    from memgraft.comparison.overlap import asking_taught
    from memgraft.probes import QAProbe

    remarks = ["One seed; settings are compared on the facts that they are measured on, so the best of many looks a little too good."]
    asked_as_taught = sum(not fact.held_out for fact in facts)
    if asked_as_taught:
        remarks.append(f"{asked_as_taught} of {len(facts)} facts have no held_out wording: they are asked in words that were taught.")
    if not controls:
        remarks.append("No --control facts: how much of the learned F1 comes from knowing what type of answer is wanted, can't be told.")
    own = [QAProbe(name="--control", questions=questions_of(controls))] if controls else []
    for probe in (*own, *probes):
        if count := len(asking_taught(facts, probe)):
            remarks.append(f"{probe.name}: {count} of its questions ask for a taught fact: they tell what was learned.")
    return remarks


def _command(
    data: Path,
    model: str | None,
    probe: list[str] | None,
    control: Path | None,
    minutes: float,
    method: list[str] | None,
    background_tokens: int,
    seed: int,
    output: Path,
    dtype: str | None,
    device: str,
    trust_remote_code: bool,
) -> str:
    import shlex

    given: list[tuple[str, Any]] = [("--model", model), ("--control", control), *(("--probe", each) for each in probe or ())]
    given += [*(("--method", each) for each in method or ()), ("--dtype", dtype), ("--device", device if device != "cpu" else None)]
    words = [word for option, value in given if value is not None for word in (option, str(value))]
    numbers = ["--minutes", f"{minutes:g}", "--background-tokens", str(background_tokens), "--seed", str(seed)]
    words += ["--output", str(output), *(["--trust-remote-code"] if trust_remote_code else [])]
    return shlex.join(["memgraft", "compare", str(data), *words, *numbers])


def _print(page: ComparisonPage) -> None:
    columns = ("method", "settings", "learned F1", page.measure, "CPU s")
    rows = [(p.method, p.label, f"{p.learned:.3f}", f"{p.forgotten:+.4f}", p.seconds) for p in page.points]
    print_table(columns, rows, numbers=columns[2:])
