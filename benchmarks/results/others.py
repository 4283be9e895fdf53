"""Sections of the comparison carried on elsewhere: behind cues, on a GPU, on other architectures; and of its parts alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.results.cells import points_table, settings_table
from benchmarks.results.studies import winners
from benchmarks.table import markdown
from memgraft.comparison.runs import read_runs
from memgraft.report.markdown import plain, table


def behind_cues(path: Path) -> Iterator[str]:
    yield f"## Rivals behind the memory's cues\n\n`python -m benchmarks.behind_cues` → `{path.as_posix()}`"
    if not path.exists():
        yield "Not run yet."
        return
    yield (
        "Is it only the cues that keep the memory from forgetting? Here every rival is asked only where the memory's cues open, and the "
        "base everywhere else; its best setting by docs/protocol.md. What is left are the differences in learning, in size, and in what "
        "can be taken back or merged."
    )
    summary = json.loads(path.read_text(encoding="utf-8"))
    for split in ("test", "tuning"):
        if split in summary:
            yield f"### {split.capitalize()} split, behind cues"
            yield settings_table(winners(summary[split]["settings"], tuned=split == "test"))


def gpu(folder: Path) -> Iterator[str]:
    path = folder / "summary.json"
    yield f"## The same on a GPU\n\n`python -m benchmarks.pareto --device cuda -o {folder.as_posix()}` → `{path.as_posix()}`"
    if not path.exists():
        yield "Not run yet."
        return
    settings = json.loads(path.read_text(encoding="utf-8"))["test"]["settings"]
    runs = list(read_runs(folder / "runs.jsonl").values())
    machines = sorted({f"{run['environment']['device']}, torch {run['environment']['packages']['torch']}" for run in runs})
    yield (
        f"{plain('; '.join(machines))}. Test split, with the settings that were best on the CPU then; its base was asked there as "
        "well, and its background, which is not kept, written there. **Not finished**: fifteen runs at a time filled the card's memory, "
        "and those that were under way were lost. "
        "The runs were started in an order of their own, test split first; the command starts with the tuning split. "
        "Methods have different seeds, so their rows are not paired. "
        "CPU seconds are those of the processor beside the GPU, peak MB those of the GPU."
    )
    yield settings_table(settings, with_seeds=True)
    points = [run for run in read_runs(folder / "stream.jsonl").values() if "facts" in run]
    if points:
        yield (
            f"Of the recipe's stream (`python -m benchmarks.recipe --parts stream --device cuda`, `{folder.as_posix()}/stream.jsonl`), "
            "each fact a lesson of its own, what was measured before it ended in the same way, one seed:"
        )
        yield from points_table(points)


def first(path: Path) -> str:
    title = f"## A first look\n\n`python -m benchmarks.first` → `{path.as_posix()}`\n\n"
    if not path.exists():
        return title + "Not run yet."
    about = (
        "50 facts drawn from both splits, one seed, one setting a method: 14 passes of 4 wordings, a quarter of the questions in lower "
        "case. `least-interference` is the default as it was then, read at every token after a fact's cues; `no cues` is the same rule "
        "with the memory open to every text.\n\n"
    )
    return title + about + markdown(json.loads(path.read_text(encoding="utf-8"))).rstrip()


def architectures(path: Path) -> Iterator[str]:
    yield f"## Other architectures\n\n`python -m benchmarks.architectures` → `{path.as_posix()}`"
    if not path.exists():
        yield "Not run yet."
        return
    yield (
        "The default recipe, but for eight wordings a pass. "
        "Gemma 3 270M is a real model (Gemma Terms of Use; `benchmarks.packaged` says from where). "
        "The others were pretrained for this: they read a quarter of the tuning split's facts, which are probed here "
        "in place of other questions, and some text."
    )
    for name, summary in json.loads(path.read_text(encoding="utf-8")).items():
        made, fitted = summary.get("pretraining", summary), summary["calibrated"]
        read = f"{made['tokens'] / 1e6:.1f} million tokens read" if "tokens" in made else f"{summary['package']}, {summary['dtype']}"
        yield f"### {plain(name)}"
        layers = f"memory layer {summary['layers'][0]}, answer layer {summary['answer_layer']}"
        yield (
            f"{made['parameters'] / 1e6:.1f} million parameters, {read}, {layers}; {summary['facts']} facts of the test split. "
            f"A token is at an anchor where it is {fitted['begins_share']:.2f} times as like a fact's wordings as these are alike "
            f"(two of one of the package's questions: a cosine of {fitted['alike']:.2f}), within a statement from a cosine of "
            f"{fitted['amid_least']:.2f} on, and where an answer goes on of {fitted['goes_on_least']:.2f}."
        )
        yield settings_table(summary["settings"], with_seeds=True)
        failed = [run for run in read_runs(path.parent / name / "runs.jsonl").values() if "failed" in run]
        if failed:
            yield "\n".join(
                f"- Failed, seed {run['seed']}, {run['method']}: {plain(run['failed'].partition(': ')[2] or run['failed'])}"
                for run in failed
            )
        taught: Mapping[str, Any] = next((each for each in summary["settings"] if each["method"] == "memory"), {"probes": {}})
        rows = [
            [plain(probe), each["metric"], *(f"{each[when]:.4f}" for when in ("before", "after"))]
            for probe, each in taught["probes"].items()
        ]
        if rows:
            yield table(["probe", "", "before", "after"], rows)


def cue_rates(path: Path) -> str:
    title = f"## What cues open\n\n`python -m benchmarks.cue_rates` → `{path.as_posix()}`\n\n"
    if not path.exists():
        return title + "Not run yet."
    summary = json.loads(path.read_text(encoding="utf-8"))
    rates = summary["rates"]
    names = [name for name in rates[0] if name not in ("facts", "cues")]
    rows = [[plain(name), *(f"{each[name]:.3f}" for each in rates)] for name in names]
    about = (
        f"{plain(summary['model'])}. Of so many, how many open the memory, by the number of facts taught; {summary['questions']} questions "
        f"a probe, {summary['text_tokens']:,} tokens of text. The first two rows should be 1, all others 0.\n\n"
    )
    return title + about + table(["", *(f"{each['facts']:,} facts, {each['cues']:,} cues" for each in rates)], rows)


def depths(folder: Path) -> Iterator[str]:
    yield f"## Depths of the answer layer\n\n`python -m benchmarks.depths` → `{folder.as_posix()}`"
    paths = sorted(folder.glob("*.json"))
    if not paths:
        yield "Not run yet."
        return
    yield (
        "Nothing is taught: facts of the tuning split, in several wordings, show where their anchors are. *Confused* is what `graft` "
        "measures on questions about made-up subjects. Of the rest, in each frame: how many of the facts' own questions, and of some on "
        "other relations about each subject, come near enough to the fact's anchor and have an answer expected behind them, own / "
        "others; *area* is that under the ROC curve of how near they come, a mean over the frames. In bold the depth that `graft` takes."
    )
    for path in paths:
        summary = json.loads(path.read_text(encoding="utf-8"))
        frames = list(summary["depths"][0]["frames"]) if summary["depths"] else []
        rows = []
        for each in summary["depths"]:
            cells = [f"{each['layer']}", f"{each['confused']:.3f}"]
            cells += [f"{each['frames'][frame]['own']:.2f} / {each['frames'][frame]['others']:.2f}" for frame in frames]
            cells.append(f"{each['area']:.3f}")
            rows.append([f"**{cell}**" for cell in cells] if each["chosen"] else cells)
        size = f"{summary['facts']} facts in {summary['wordings']} wordings, {summary['others']} other questions each"
        yield f"### {plain(summary['model'])}, {summary['dtype']}\n\n{size}; the model has {summary['blocks']} blocks."
        yield table(["in front of block", "confused", *frames, "area"], rows)


def core_sets(path: Path) -> str:
    title = f"## Core sets of facts\n\n`python -m benchmarks.core_sets` → `{path.as_posix()}`\n\n"
    runs = list(read_runs(path).values())
    if not runs:
        return title + "Not run yet."
    kept = [name for name in runs[0]["f1_kept"] if all(name in run["f1_kept"] for run in runs)]
    rows = [[name, f"{fmean(run['f1_kept'][name] for run in runs):.3f}"] for name in kept]
    rows.append(["all rows", f"{fmean(run['f1_all_rows'] for run in runs):.3f}"])
    sizes, written, asked = (fmean(run[name] for run in runs) for name in ("core_slots", "written_core_slots", "question_slots"))
    lost = sum(run["f1_kept"][str(run["core_slots"])] == 0 for run in runs)
    about = (
        f"{len(runs)} facts of the tuning split, taught by the papers' recipe (TF-IDF, t = 500, SGD; the default's anchors have no core "
        f"set). On average {sizes:.0f} slots are read by all wordings of a fact and by its question, which reads {asked:,.0f}; "
        f"{written:.0f} of them were written. With only its core set kept, {lost} of {len(runs)} facts score nothing: most of what "
        "answers lies outside.\n\n"
    )
    return title + about + table(["core rows kept", "F1"], rows)


def generation(path: Path) -> str:
    title = f"## Speed of generation\n\n`python -m benchmarks.generation STORE…` → `{path.as_posix()}`\n\n"
    if not path.exists():
        return title + "Not run yet."
    about = (
        "CPU seconds with a store's memory beside the model, and without it, in turns, one thread: answers of 24 tokens, one by one, to "
        "four prompts about something else (*closed*), and to some that name the subjects of its facts (*open*), of which so many "
        "opened a lesson; one pass over a long text.\n\n"
    )
    columns = ["model", "lessons", "facts", "", "opened", "seconds", "of the base", "ratio"]
    rows = []
    for store in json.loads(path.read_text(encoding="utf-8"))["stores"]:
        for name in ("closed", "open", "long text"):
            if each := store.get(name):
                opened = f"{each['opened']} of {each['prompts']}" if "opened" in each else ""
                times = [f"{each['seconds']:.2f}", f"{each['base seconds']:.2f}", f"{each['ratio']:.2f}"]
                rows.append([plain(store["model"]), f"{store['lessons']:,}", f"{store['facts']:,}", name, opened, *times])
    return title + about + table(columns, rows)


def lost(path: Path) -> str:
    title = f"## Facts of a stream that are wrong\n\n`python -m benchmarks.lost STORE` → `{path.as_posix()}`\n\n"
    if not path.exists():
        return title + "Not run yet."
    summary = json.loads(path.read_text(encoding="utf-8"))
    about = (
        f"Of {summary['facts']:,} facts, each a lesson of its own, those that are not fully right in the end, and what is read at the last "
        "token of their question, where the answer should begin: nothing, because their own lesson is closed or although it is open; "
        "their own lesson, alone or with others; or others only.\n\n"
    )
    groups: dict[str, list[Any]] = {"worse than right after their lesson": [], "as right after it, or better": []}
    for each in summary["wrong"]:
        groups["worse than right after their lesson" if each["now"] < each["then"] else "as right after it, or better"].append(each)
    columns = ["", "facts", "nothing, closed", "nothing, open", "its own", "its own and others", "others of its relation", "of another"]
    rows = []
    for name, wrong in groups.items():
        silent = [each["open"] for each in wrong if not each["read"]]
        own = [len(each["read"]) for each in wrong if each["lesson"] in each["read"]]
        others = [each["relation"] in each["of relations"] for each in wrong if each["read"] and each["lesson"] not in each["read"]]
        alone = own.count(1)
        counts = (len(wrong), silent.count(False), silent.count(True), alone, len(own) - alone, others.count(True), others.count(False))
        rows.append([name, *map(str, counts)])
    return title + about + table(columns, rows) + "\n\nF1 by when a fact was taught:\n\n" + _by_thousands(summary)


def _by_thousands(summary: Mapping[str, Any]) -> str:
    rows = []
    for first in range(0, summary["facts"], 1000):
        last = min(first + 1000, summary["facts"])
        wrong = [each for each in summary["wrong"] if first <= each["lesson"] < last]
        scores = (1 - sum(1 - each[when] for each in wrong) / (last - first) for when in ("then", "now"))
        rows.append([f"{first + 1:,} to {last:,}", *(f"{score:.3f}" for score in scores)])
    return table(["facts", "right after their lesson", "in the end"], rows)
