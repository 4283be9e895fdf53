"""The default recipe, in the form of docs/protocol.md, on models of other architectures.

    python -m benchmarks.architectures --data FOLDER    # results/architectures

One is real, Gemma 3 270M, from packages on PyPI that `benchmarks.packaged` names; it is asked all that the protocol asks. The others
are pretrained here (`benchmarks.pretraining`): in place of the protocol's other questions, of which they know nothing, they are asked the
facts that they were pretrained on. All are taught facts of the test split that the base answers wrongly, beside the base. Resumable: a
model that is there is not made again, one that is being made goes on, and every run is a line of its runs.jsonl.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.materials import Choice
from benchmarks.measurement import SHOTS
from benchmarks.packaged import PACKAGED, unpacked
from benchmarks.pareto import output_of, parser_of, study_of
from benchmarks.pretraining import ARCHITECTURES, known_rows, pretrained
from benchmarks.study import Study, Task
from benchmarks.writing import write_json
from memgraft.comparison.grid import memory
from memgraft.comparison.methods import Base
from memgraft.comparison.summary import BASE, MEMORY, summarise
from memgraft.errors import DataError, MemgraftError
from memgraft.probes import QAProbe, QuestionRow, TextProbe

READ = "facts of pretraining"
CALIBRATED = ("begins_share", "alike", "amid_least", "goes_on_least")  # see `memgraft.answer_layer`


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing. Exit status 1 with one line where something can't be used."""
    parser = parser_of("python -m benchmarks.architectures", "The default recipe on models of other architectures.")
    names = sorted([*PACKAGED, *ARCHITECTURES])
    parser.add_argument("--architectures", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--facts", type=int, default=50, help="taught, and as many controls (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1200, help="of pretraining (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.smoke:
        options.facts, options.steps = 4, 2
    output = output_of(options, "architectures")
    path = output / "summary.json"
    summaries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    try:
        if options.data is None:
            raise DataError("no data: name the folder of the data sets with --data or MEMGRAFT_DATA")
        for name in options.architectures:
            options.output = output / name
            if name in PACKAGED:
                options.model = str(unpacked(name, options.cache / "packaged"))
                summaries[name] = {"package": PACKAGED[name].install, **measured(study_of(options), options.facts)}
            else:
                folder, pretraining = pretrained(name, options.data, options.cache / "pretrained", steps=options.steps)
                options.model = str(folder)
                study = study_of(options)
                study.probes = [facts_read(options.data), *(probe for probe in study.probes if isinstance(probe, TextProbe))]
                summaries[name] = {"pretraining": pretraining, **measured(study, options.facts)}
            write_json(path, summaries)
    except MemgraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def facts_read(data: Path) -> QAProbe:
    """Asks what the models that are made here were pretrained on."""
    read = tuple(QuestionRow(question=row["question"], answers=tuple(row["answers"])) for row in known_rows(data))
    return QAProbe(name=READ, questions=read, shots=SHOTS)


def measured(study: Study, facts: int) -> dict[str, Any]:
    """What the base knows and what it knows once taught, with intervals over all seeds."""
    choices = [Choice("test", facts, seed) for seed in range(study.sizes.test_seeds)]
    (default, *_) = study.methods[MEMORY]
    runs = study.run_tasks([task for choice in choices for task in (Task(choice, BASE, Base()), Task(choice, MEMORY, default))])
    layers = study.workshop.grafted(memory())
    assert layers.answers is not None
    return {
        "dtype": study.identity["dtype"],
        "parameters": study.workshop.base.num_parameters(),
        "layers": list(layers.config.layers),
        "answer_layer": layers.config.answer_layer,
        "calibrated": {name: round(float(getattr(layers.answers, name)), 4) for name in CALIBRATED},
        "facts": facts,
        **summarise(study.identified(runs)),
    }


if __name__ == "__main__":
    raise SystemExit(main())
