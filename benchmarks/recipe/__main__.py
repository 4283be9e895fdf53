"""The default recipe, held against what it promises: docs/results.md has the figures.

    python -m benchmarks.recipe --data FOLDER                       # results/recipe: all parts, then summary.json
    python -m benchmarks.recipe --data FOLDER --parts taught        # one part

Parts, each resumable: `taught` (200 facts in one lesson: frames, near misses, instructions), `corrections` (100 of them and 100 that the
base knew get other answers), `stream` (1,000 facts, each a lesson of its own), `namesakes` (200 of these, and then one about each subject
whose name is put together from two of theirs), `together` (100 of these and those about such namesakes in one lesson). How the recipe
compares with others is `benchmarks.pareto`, whose test split the summary takes up. Lessons go into real stores under --cache.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pareto import output_of, parser_of, study_of
from benchmarks.recipe import pooling
from benchmarks.recipe.bench import Bench
from benchmarks.recipe.corrections import corrections
from benchmarks.recipe.namesakes import namesakes, together
from benchmarks.recipe.stream import stream
from benchmarks.recipe.taught import WORDINGS, taught
from benchmarks.writing import write_json
from memgraft.comparison.runs import append_run, read_runs, run_id
from memgraft.errors import MemgraftError
from memgraft.teaching import Recipe

PARTS = ("taught", "corrections", "stream", "namesakes", "together")
SCORES = ("learned_f1", "control_f1", "net_f1", "near_miss_f1", "leaked_f1", "probes")
COMPARED = ("label", "seeds", *SCORES, "rows_per_fact", "bytes", "seconds")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing. Exit status 1 with one line where something can't be used."""
    parser = parser_of("python -m benchmarks.recipe", "What the default recipe learns, keeps and leaves alone.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these (default: all)")
    parser.add_argument("--facts", type=int, help="of the one lesson (default: 200)")
    parser.add_argument("--changed", type=int, help="facts that get another answer, of each kind (default: 100)")
    parser.add_argument(
        "--stream-facts", type=int, help="facts of the stream (default: 1000); a longer one goes on where a shorter one ended"
    )
    parser.add_argument("--first-facts", type=int, help="facts that namesakes are taught after (default: 200)")
    parser.add_argument("--together-facts", type=int, help="facts that are taught in one lesson with their namesakes (default: 100)")
    parser.add_argument("--seeds", type=int, default=1, help="how often each part is run (default: %(default)s)")
    options = parser.parse_args(argv)
    options.output = output_of(options, "recipe")
    sizes_of = (("facts", 200, 4), ("changed", 100, 2), ("stream_facts", 1000, 3), ("first_facts", 200, 8), ("together_facts", 100, 8))
    for name, usual, small in sizes_of:
        if getattr(options, name) is None:
            setattr(options, name, small if options.smoke else usual)
    try:
        study = study_of(options)
        bench = Bench(study, options.cache / "recipe")
        tasks: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, int]]] = {
            "taught": (taught, {"facts": options.facts}),
            "corrections": (corrections, {"facts": options.facts, "changed": options.changed}),
            "stream": (stream, {"facts": options.stream_facts}),
            "namesakes": (namesakes, {"facts": options.first_facts}),
            "together": (together, {"facts": options.together_facts}),
        }
        path = study.output / "parts.jsonl"
        for seed in range(options.seeds):
            for name in options.parts:
                part, sizes = tasks[name]
                shared = {name: getattr(study.sizes, name) for name in ("questions", "text_tokens", "background_tokens")}
                recipe = Recipe(seed=seed).model_dump(mode="json")
                settings = {"part": name, **sizes, "seed": seed, **shared, "recipe": recipe, **study.identity}
                if name in ("taught", "corrections"):
                    # What is measured is part of the run's id.
                    settings |= {"wordings": WORDINGS, "base_asked": "the same list again"}
                if run_id(settings) not in read_runs(path):
                    result = part(bench, seed=seed, **sizes)
                    append_run(path, {"id": run_id(settings), **settings, **result, "environment": study.environment})
        write_json(study.output / "summary.json", summary(study.output))
    except MemgraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def summary(folder: Path) -> dict[str, Any]:
    """The parts, and what the study measured of each method, with intervals."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for run in read_runs(folder / "parts.jsonl").values():
        parts.setdefault(run["part"], []).append({name: value for name, value in run.items() if name not in ("id", "part", "environment")})
    compared = folder.parent / "pareto" / "summary.json"
    methods: dict[str, Any] = {"memgraft": {}}
    if compared.exists():
        for setting in json.loads(compared.read_text(encoding="utf-8")).get("test", {}).get("settings", []):
            name = {"memory": "memgraft"}.get(setting["method"], setting["method"])
            if methods.get(name):
                continue  # the winner comes first
            measures = {"d_text_nll": "text_nll", "d_qa_f1_rel": "qa_f1"}
            methods[name] = {
                **{field: setting[field] for field in COMPARED if field in setting},
                **{measure: setting["forgotten"][pool] for measure, pool in measures.items()},
                "d_gsm8k_nll": setting["probes"]["gsm8k"]["change"],
            }
    own = methods["memgraft"]
    if parts.get("taught"):
        found = pooling.taught(pooling.latest(parts["taught"]))
        own |= {"taught_seeds": found["seeds"], "frames": found["frames"], "locality": found["locality"]}
        own.setdefault("rows_per_fact", found["rows_per_fact"])
    if parts.get("corrections"):
        own["corrections"] = pooling.corrections(pooling.latest(parts["corrections"]))
    if parts.get("namesakes"):
        own["namesakes"] = pooling.namesakes(pooling.latest(parts["namesakes"]))
    if parts.get("together"):
        own["together"] = pooling.together(pooling.latest(parts["together"]))
    for count in {run["facts"]: None for run in parts.get("stream", ())}:
        runs = [run for run in pooling.latest_streams(parts["stream"]) if run["facts"] == count]
        own.setdefault("stream_retention", {})[str(count)] = pooling.streams(runs)
    return {"methods": methods, "parts": parts}


if __name__ == "__main__":
    raise SystemExit(main())
