"""docs/results.md from the summaries of the studies, never by hand: python -m benchmarks.results results > docs/results.md"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results.others import architectures, behind_cues, core_sets, cue_rates, depths, first, generation, gpu, lost
from benchmarks.results.recipe import recipe
from benchmarks.results.studies import rows_a_fact, study
from benchmarks.study import Sizes

HEAD = """# Results

Made by `python -m benchmarks.results results > docs/results.md` from the files that each section names. How everything was measured:
[protocol.md](protocol.md). The commands find the data sets by `--data FOLDER` or `MEMGRAFT_DATA`. What did not work:
[tried.md](tried.md). F1 from 0 to 1; NLL in nats per token; in brackets 95 % bootstrap intervals over items.
"""
NOTES = Path(__file__).parents[1] / "notes.md"
IN_FRONT = ("What to know of these figures", "What the recipe was to reach")  # of all sections
STUDIES = {
    "pareto": "Learning against forgetting",
    "larger": "Lessons of 200 facts",
    "ranking": "Rankings over t",
    "background": "Background text",
    "optimizer": "Optimizers",
    "stream": "A stream of facts",
    "documents": "A stream of documents",
}
FIGURES = {
    "ranking": "Learned and forgotten over t, by ranking",
    "stream": "Learned and forgotten along a stream of facts, by method",
    "documents": "Learned and forgotten along a stream of documents, by method",
}


def results(folder: Path) -> str:
    """The page as Markdown; studies without a summary are named as not run."""
    notes = _notes(NOTES.read_text(encoding="utf-8"))
    parts = [HEAD.rstrip(), *(f"## {title}\n\n{notes.pop(title)}" for title in IN_FRONT)]
    for name, title in STUDIES.items():
        path = folder / name / "summary.json"
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        command = " ".join(["python -m benchmarks.pareto", *([] if name == "pareto" else ["--study", name]), *_sizes(summary or {})])
        parts.append(f"## {title}\n\n`{command}` → `{path.as_posix()}`")
        parts += study(summary) if summary else ["Not run yet."]
        if summary and name in FIGURES:
            parts.append(f"![{FIGURES[name]}]({name}.svg)")
        if name == "pareto":
            parts += rows_a_fact(summary)
            parts += behind_cues(folder / name / "behind_cues.json")
            parts += gpu(folder / "h100")
    parts.append(first(folder / "first" / "summary.json"))
    parts += recipe(folder / "recipe" / "summary.json")
    parts.append(lost(folder / "lost" / "summary.json"))
    parts += architectures(folder / "architectures" / "summary.json")
    parts.append(cue_rates(folder / "cues" / "summary.json"))
    parts += depths(folder / "depths")
    parts.append(core_sets(folder / "core-sets" / "runs.jsonl"))
    parts.append(generation(folder / "generation" / "summary.json"))
    page = "\n\n".join(parts) + "\n"
    for title, note in notes.items():
        page = _noted(page, title, note)
    return page


def _notes(text: str) -> dict[str, str]:
    """What is to be said by hand, by the title of its section."""
    found = (section.partition("\n") for section in text.removeprefix("## ").split("\n## "))
    return {title.strip(): note.strip() for title, _, note in found}


def _noted(page: str, title: str, note: str) -> str:
    """The page with a note right below the command of one of its sections. ValueError where there is no such section."""
    before, heading, section = page.partition(f"\n## {title}\n\n")
    if not heading:
        raise ValueError(f"{NOTES}: no section of the page is called {title!r}")
    command, _, rest = section.partition("\n\n")
    return f"{before}{heading}{command}\n\n{note}\n\n{rest}"


def _sizes(summary: Mapping[str, Any]) -> list[str]:
    """The command line's sizes that are not the defaults."""
    usual = Sizes().model_dump()
    return [f"--{name.replace('_', '-')} {summary[name]}" for name in usual if name in summary and summary[name] not in (usual[name], None)]


if __name__ == "__main__":
    print(results(Path(sys.argv[1])), end="")
