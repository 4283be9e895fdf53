"""Learning against forgetting, the memory and its rivals, each at its best settings: docs/protocol.md carried out.

    python -m benchmarks.pareto --data FOLDER                    # results/pareto: tuning, then the test split
    python -m benchmarks.pareto --study ranking --data FOLDER    # or larger, background, optimizer, stream, documents
    python -m benchmarks.pareto --smoke --data FOLDER -o out/smoke

Two runs at a time, each on half of the cores. Every run is a line of runs.jsonl, on disk as soon as it is measured; the same command
goes on where it was stopped, however it was. summary.json is written again after each run. What is slow and shared (the base's
answers and scores, self-written text) is kept beside the runs and under --cache.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.base_model import add_model_options
from benchmarks.jobs import Runner, add_jobs_option, check_jobs, threads_of
from benchmarks.measurement import read_rows
from benchmarks.settings import STUDIES
from benchmarks.study import Sizes, Study, taught_data
from memgraft.errors import DataError, MemgraftError
from memgraft.models import demo_model_path

SMOKE = Sizes(tuning_facts=3, test_facts=4, test_seeds=2, questions=3, text_tokens=512, background_tokens=2048, settings=2, passes=1)
TEST_FACTS = {"larger": 200, "documents": 20}  # of studies that have another number of them than the comparison


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of("python -m benchmarks.pareto", "Learning against forgetting, method by method.")
    parser.add_argument("--study", choices=STUDIES, default="pareto", help="what is varied (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="run only these methods of the study; the summary covers all")
    add_jobs_option(parser, "runs")
    return parser.parse_args(argv)


def parser_of(command: str, description: str) -> argparse.ArgumentParser:
    """A parser of the options of all that needs a study's model and data."""
    parser = argparse.ArgumentParser(prog=command, description=description)
    data = os.environ.get("MEMGRAFT_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data), help="folder of the data sets (default: MEMGRAFT_DATA)")
    parser.set_defaults(study="pareto", methods=None)
    parser.add_argument("-o", "--output", type=Path, help="folder of the results (default: in results/, with --smoke in out/smoke/)")
    parser.add_argument("--cache", type=Path, default=Path("out", "cache"), help="folder for what is slow to make (default: %(default)s)")
    add_model_options(parser)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a few facts and questions, to see that everything works")
    for name, field in Sizes.model_fields.items():
        if name not in ("settings", "passes"):
            parser.add_argument("--" + name.replace("_", "-"), type=int, help=f"{field.description} (default: {field.default})")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing. Exit status 1 with one line where something can't be used."""
    options = arguments(argv)
    try:
        check_jobs(options.jobs)
        if options.jobs > 1:
            torch.set_num_threads(threads_of(options.jobs))  # as in the processes: figures depend on it in their last digits
        study_of(options).run(options.jobs, partial(_task_runner, options))
    except MemgraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def output_of(options: argparse.Namespace, name: str) -> Path:
    """The folder of the results; by default a small trial's are none of those that are kept."""
    given: Path | None = options.output
    return given or Path("out/smoke" if options.smoke else "results", name)


def study_of(options: argparse.Namespace) -> Study:
    """The study that the command line asks for. MemgraftError where something can't be used."""
    if options.data is None:
        raise DataError("no data: name the folder of the data sets with --data or MEMGRAFT_DATA")
    methods = STUDIES[options.study]()
    unknown = sorted(set(options.methods or ()) - set(methods))
    if unknown:
        raise MemgraftError(f"no method of the study {options.study} is called {unknown[0]!r}: expected {', '.join(methods)}")
    given = {name: value for name in Sizes.model_fields if (value := getattr(options, name, None)) is not None}
    sizes = SMOKE if options.smoke else Sizes(test_facts=TEST_FACTS[options.study]) if options.study in TEST_FACTS else Sizes()
    sizes = sizes.model_copy(update=given)
    return Study(
        options.study,
        methods,
        only=options.methods,
        sizes=sizes,
        data=options.data,
        rows=read_rows(taught_data(options.study, options.data)),
        source=options.model or str(demo_model_path()),
        dtype=options.dtype,
        device=options.device,
        output=output_of(options, options.study),
        cache=options.cache,
    )


def _task_runner(options: argparse.Namespace) -> Runner:
    return study_of(options).run_task


if __name__ == "__main__":
    raise SystemExit(main())
