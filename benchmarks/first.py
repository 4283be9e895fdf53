"""The first benchmark: 50 facts that the base model does not know, taught with sparse memory writes and with LoRA.

    python -m benchmarks.first --data FOLDER -o results/first

FOLDER holds facts/entityquestions.jsonl, probes/webquestions.jsonl and text/wikitext2_test.txt; MEMGRAFT_DATA may name it
instead. Facts are taught in the wordings of relations.json and asked in the data set's own, which is never taught, with
other examples in front. Two arms run at a time, each on half of the cores. Each is one line of runs.jsonl, written when it is
done: a benchmark that was stopped goes on where it was. summary.json and table.md are written again after each arm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Arm, chosen_arms, method_of
from benchmarks.base_model import add_model_options
from benchmarks.jobs import Runner, add_jobs_option, check_jobs, finished
from benchmarks.measurement import FACTS, Protocol, data_file, probes_for, question_probe, read_rows, taught_rows
from benchmarks.selection import Selection, select_facts
from benchmarks.table import markdown, summarise
from memgraft.comparison.measuring import measure_all
from memgraft.comparison.runs import append_run, environment, read_runs, run_id
from memgraft.comparison.workshop import Lesson, Progress, Workshop
from memgraft.errors import DataError, MemgraftError
from memgraft.examples import Fact
from memgraft.models import demo_model_path, load_model
from memgraft.probes import measure

LORA_LRS = (2e-4,)  # of those that Lin et al. 2025 swept
SGD_LRS = (0.3,)  # in the units of this package, reads being scaled to the residual stream


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; every default is the benchmark's own."""
    defaults = {name: field.default for name, field in Protocol.model_fields.items()}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first", description="Teach 50 facts in several ways and measure what is forgotten."
    )
    data = os.environ.get("MEMGRAFT_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data), help="folder of the data sets (default: MEMGRAFT_DATA)")
    parser.add_argument("-o", "--output", type=Path, default=Path("results", "first"), help="folder of the results (default: %(default)s)")
    add_model_options(parser)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add_jobs_option(parser, "arms taught")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only these arms, by how their names start; the base is always measured")
    parser.add_argument(
        "--lora-lr", nargs="+", type=float, default=LORA_LRS, metavar="LR", help="LoRA's learning rates (default: %(default)s)"
    )
    parser.add_argument(
        "--sgd-lr", nargs="+", type=float, default=SGD_LRS, metavar="LR", help="learning rates of SGD on rows (default: %(default)s)"
    )
    for name in ("facts", "wordings", "passes", "questions", "text_tokens", "seed"):
        text = f"{Protocol.model_fields[name].description} (default: %(default)s)"
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=defaults[name], help=text)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the table. Exit status 1 with one line where something can't be used."""
    try:
        run_benchmark(arguments(argv))
    except MemgraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_benchmark(options: argparse.Namespace) -> None:
    """All chosen arms that are not in runs.jsonl yet, some at a time."""
    check_jobs(options.jobs)
    bench = Bench(options)
    chosen = chosen_arms(options.arms, options.lora_lr, options.sgd_lr)
    ids = {arm.name: bench.id_of(arm) for arm in chosen_arms(None, options.lora_lr, options.sgd_lr)}
    runs_path = options.output / "runs.jsonl"
    runs = read_runs(runs_path)
    missing = [arm for arm in chosen if ids[arm.name] not in runs]
    # First the base, against which all others are shown, then what takes longest.
    missing.sort(key=lambda arm: ("base", "lora", "memory").index(arm.kind))
    for run in finished(missing, options.jobs, bench.run, partial(_arm_runner, options)):
        append_run(runs_path, run)
        runs[run["id"]] = run
        if ids["base"] not in runs:
            continue
        write_results(options.output, [runs[each] for each in ids.values() if each in runs], bench.shared)
    # Arms that were left out this time but are done stay in the table.
    print(write_results(options.output, [runs[each] for each in ids.values() if each in runs], bench.shared))


class Bench:
    """The model, what is taught and what is asked: all that an arm's run needs."""

    def __init__(self, options: argparse.Namespace) -> None:
        if options.data is None:
            raise DataError("no data: name the folder of the data sets with --data or MEMGRAFT_DATA")
        path = data_file(options.data, FACTS)
        rows = read_rows(path)
        source = options.model or str(demo_model_path())
        self.device = torch.device(options.device)
        loaded = load_model(source, dtype=options.dtype)
        torch.nn.Module.to(loaded.model, self.device)  # transformers wraps .to() in a decorator that loses its type
        self.workshop = Workshop(loaded.model, loaded.tokenizer, on_progress=progress_line(sys.stderr.isatty()))
        self.protocol = Protocol(
            model=Path(source).name,
            dtype=str(self.workshop.base.dtype).removeprefix("torch."),
            device=self.device.type,
            **{name: getattr(options, name) for name in ("facts", "wordings", "passes", "questions", "text_tokens", "seed")},
        )
        self.shared = {"protocol": self.protocol.model_dump(mode="json"), "data_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        self.selection = selected(self.workshop, rows, self.protocol, options.output / "selection.json", self.shared)
        taught = zip(self.selection.taught, taught_rows(rows, self.selection), strict=True)
        facts = [Fact(line=1 + index, **fact) for index, fact in taught]
        self.probes = probes_for(options.data, rows, self.selection, self.protocol)
        passes, wordings, seed = self.protocol.passes, self.protocol.wordings, self.protocol.seed
        self.lesson = Lesson(facts, self.workshop.prepare(facts, passes=passes, wordings=wordings, seed=seed), seed)

    def id_of(self, arm: Arm) -> str:
        """What identifies the arm's run."""
        return run_id(recipe_of(arm, self.shared, self.selection))

    def run(self, arm: Arm) -> dict[str, Any]:
        """Teach and measure one arm."""
        print(arm.name, file=sys.stderr, flush=True)
        with self.workshop.taught(method_of(arm, self.protocol), self.lesson) as taught:
            start = time.process_time()
            scores = measure_all(taught.model, self.workshop.tokenizer, self.probes)
        return {
            "id": self.id_of(arm),
            "recipe": recipe_of(arm, self.shared, self.selection),
            "scores": scores,
            "measure_seconds": round(time.process_time() - start, 3),
            **taught.costs(),
            "environment": environment(self.device),
        }


def _arm_runner(options: argparse.Namespace) -> Runner:
    return Bench(options).run


def recipe_of(arm: Arm, shared: dict[str, Any], selection: Selection) -> dict[str, Any]:
    """All that shapes a run's figures."""
    return {**shared, "selection": selection.model_dump(mode="json"), "arm": arm.name, "settings": arm.settings}


def selected(workshop: Workshop, rows: list[dict[str, Any]], protocol: Protocol, path: Path, shared: dict[str, Any]) -> Selection:
    """The facts to teach and the controls, asked of the base once and kept beside the runs as row numbers."""
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if {name: kept[name] for name in shared} == shared:
            return Selection(taught=kept["taught"], control=kept["control"])
    asked = 0

    def is_wrong(indices: Sequence[int]) -> list[bool]:
        nonlocal asked
        asked += len(indices)
        workshop.on_progress("asking the base", asked, asked)
        probe = question_probe("candidates", [rows[index] for index in indices], protocol.shots)
        return [value == 0 for value in measure(probe, workshop.base, workshop.tokenizer).values]

    selection = select_facts(rows, is_wrong, protocol.facts, protocol.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**shared, **selection.model_dump(mode="json")}) + "\n", encoding="utf-8")
    return selection


def write_results(folder: Path, runs: Sequence[dict[str, Any]], shared: dict[str, Any]) -> str:
    """Write summary.json and table.md and return the table."""
    summary = summarise(runs, shared)
    table = markdown(summary)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table, encoding="utf-8")
    return table


def progress_line(terminal: bool) -> Progress:
    """Progress on stderr: one line that is overwritten on a terminal, one line a stage elsewhere."""
    last = ""

    def show(stage: str, done: int, total: int) -> None:
        nonlocal last
        if terminal:
            print(f"\r\033[K{stage} {done:,}/{total:,}", end="" if done < total else "\n", file=sys.stderr, flush=True)
        elif stage != last:
            print(stage, file=sys.stderr, flush=True)
        last = stage

    return show


if __name__ == "__main__":
    raise SystemExit(main())
