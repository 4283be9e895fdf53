"""docs/results.md from the summaries of the studies, never by hand: python -m benchmarks.results results > docs/results.md"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.recipe import pooling
from benchmarks.study import Sizes
from benchmarks.table import markdown
from memgraft.comparison.runs import read_runs
from memgraft.report.markdown import plain, table

HEAD = """# Results

Made by `python -m benchmarks.results results > docs/results.md` from the files that each section names. How everything was measured:
[protocol.md](protocol.md). The commands find the data sets by `--data FOLDER` or `MEMGRAFT_DATA`. What did not work:
[tried.md](tried.md). F1 from 0 to 1; NLL in nats per token; in brackets 95 % bootstrap intervals over items.
"""
NOTES = Path(__file__).with_name("notes.md")
STUDIES = {
    "pareto": "Learning against forgetting",
    "ranking": "Rankings over t",
    "background": "Background text",
    "optimizer": "Optimizers",
    "stream": "A stream of facts",
}
FIGURES = {"ranking": "Learned and forgotten over t, by ranking", "stream": "Learned and forgotten along a stream of facts, by method"}
BESIDE = {"near misses, as before": "near_miss_f1", "taught answer unasked": "leaked_f1"}
MEASURES = {"qa_f1": "F1 drop, relative", "answer_nll": "answer NLL", "text_nll": "text NLL"}


def results(folder: Path) -> str:
    """The page as Markdown; studies without a summary are named as not run."""
    parts = [HEAD.rstrip(), NOTES.read_text(encoding="utf-8").rstrip()]
    for name, title in STUDIES.items():
        path = folder / name / "summary.json"
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        command = " ".join(["python -m benchmarks.pareto", *([] if name == "pareto" else ["--study", name]), *_sizes(summary or {})])
        parts.append(f"## {title}\n\n`{command}` → `{path.as_posix()}`")
        parts += _study(summary) if summary else ["Not run yet."]
        if summary and name in FIGURES:
            parts.append(f"![{FIGURES[name]}]({name}.svg)")
        if name == "pareto":
            parts += _rows(summary)
            parts += _behind_cues(folder / name / "behind_cues.json")
            parts += _gpu(folder / "h100")
    parts.append(_first(folder / "first" / "summary.json"))
    parts += _recipe(folder / "recipe" / "summary.json")
    parts += _architectures(folder / "architectures" / "summary.json")
    parts.append(_cue_rates(folder / "cues" / "summary.json"))
    parts.append(_core_sets(folder / "core-sets" / "runs.jsonl"))
    return "\n\n".join(parts) + "\n"


def _sizes(summary: Mapping[str, Any]) -> list[str]:
    """The command line's sizes that are not the defaults."""
    usual = Sizes().model_dump()
    return [f"--{name.replace('_', '-')} {summary[name]}" for name in usual if name in summary and summary[name] not in (usual[name], None)]


def _study(summary: Mapping[str, Any]) -> Iterator[str]:
    compared = summary["study"] == "pareto"
    if compared:
        taught = f"Tuning: {summary['tuning_facts']} facts; test: {summary['test_facts']} facts, {summary['test_seeds']} seeds"
    else:
        taught = f"{summary['test_facts' if summary['study'] == 'stream' else 'tuning_facts']} facts of the test split, one seed"
    yield (
        f"{plain(summary['model'])}, {summary['dtype']}. {taught}; {summary['questions']} questions a probe, "
        f"{summary['text_tokens']:,} tokens of text."
    )
    if compared and "test" not in summary:
        yield "**Not finished**: these are runs of the tuning split. The command goes on from here."
    for split in ("test", "tuning"):
        if split in summary:
            if compared:
                yield from _compared(split, summary[split])
            else:
                yield _settings(_by_method(summary[split]))
            if summary[split].get("failed"):
                yield "Settings that broke down:"
                yield "\n".join(
                    f"* {plain(each['method'])}, {plain(each['label'])}: {plain(each['why'])}" for each in summary[split]["failed"]
                )
    for stream in summary.get("streams", ()):
        if stream["along"]:
            yield f"### {plain(stream['method'])}"
            names = list(stream["along"][0])
            yield table(names, ([_cell(point[name]) for name in names] for point in stream["along"]))


def _compared(split: str, part: Mapping[str, Any]) -> Iterator[str]:
    tested, settings = split == "test", _by_method(part)
    yield f"### {split.capitalize()} split"
    yield from _at_equal_learning(part["at_equal_learning"])
    yield "Each method at the setting that is best" + (
        " on the tuning split:" if tested else ", by learned F1 × exp(−rise of the text NLL):"
    )
    best = winners(settings, tuned=tested)
    yield _settings(best, with_seeds=tested)
    if tested:
        yield "Each probe alone, what the base has and how the method's differs (F1 is better higher, NLL lower):"
        yield _by_probe(best)
    if len(best) < len(settings):
        tried = Counter(each["method"] for each in settings if each["method"] != "base")
        yield f"All settings that were run ({', '.join(f'{plain(name)} {count}' for name, count in tried.items())}):"
        yield _settings(settings, with_seeds=tested)


def _by_method(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of each method together, in the order of the methods."""
    methods = list(dict.fromkeys(each["method"] for each in part["settings"]))
    return sorted(part["settings"], key=lambda each: methods.index(each["method"]))


def _at_equal_learning(equal: Mapping[str, Any]) -> Iterator[str]:
    if not equal:
        return
    measures = [name for name in MEASURES if name in equal["forgotten"]]
    rows = [["memory", f"{equal['learned_f1']:.3f}", *(span(equal["forgotten"][name]) for name in measures)]]
    for method, by_measure in equal["rivals"].items():
        one = by_measure[measures[-1]]
        learned = f"{one['learned_f1']:.3f}" + ("" if one["reached"] else ", its most")
        rows.append([plain(method), learned, *(span(by_measure[name]["forgotten"]) for name in measures)])
    yield (
        "Forgetting at the memory's learned F1: read off a method's front between the settings that enclose it, its best setting where "
        "none learns as much (*its most*), its only one where one was run."
    )
    yield table(["method", "learned F1", *(MEASURES[name] for name in measures)], rows)


def winners(settings: Sequence[Mapping[str, Any]], *, tuned: bool = False) -> list[Mapping[str, Any]]:
    """Each method's best setting, in the order of the methods.

    Args:
        tuned: the best is that of the tuning split, which is the first of each method on the test split.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for each in settings:
        if each["method"] not in best or (not tuned and each["balance"] > best[each["method"]]["balance"]):
            best[each["method"]] = each
    return list(best.values())


def _settings(settings: list[Mapping[str, Any]], with_seeds: bool = False) -> str:
    measures = [name for name in MEASURES if name in settings[0]["forgotten"]]
    seeds = ["seeds"] if with_seeds else []
    beside = {name: field for name, field in BESIDE.items() if any(field in each for each in settings)}
    learned, costs = ("learned F1", "net of control"), ("rows a fact", "CPU s", "MB", "peak MB")
    columns = ["method", "settings", *seeds, *learned, *beside, *(MEASURES[name] for name in measures), *costs]
    rows = [
        [
            plain(each["method"]),
            plain(each["label"]),
            *(str(len(each["seeds"])) for _ in seeds),
            span(each["learned_f1"]),
            span(each.get("net_f1")),
            *(span(each.get(field)) for field in beside.values()),
            *(span(each["forgotten"][name]) for name in measures),
            _cell(each.get("rows_per_fact")),
            _cell(each["seconds"]),
            _cell(None if each["bytes"] is None else each["bytes"] / 1e6),
            _cell(None if each["peak_bytes"] is None else each["peak_bytes"] / 1e6),
        ]
        for each in settings
    ]
    return table(columns, rows)


def _by_probe(settings: Sequence[Mapping[str, Any]]) -> str:
    probes = settings[0]["probes"]
    rows = [["base", *(f"{each['before']:.3f}" for each in probes.values())]]
    rows += [
        [plain(setting["method"]), *(_signed(setting["probes"][name]["change"]) for name in probes)]
        for setting in settings
        if setting["method"] != "base"
    ]
    return table(["method", *(f"{name}, {each['metric']}" for name, each in probes.items())], rows)


def _signed(change: Mapping[str, Any]) -> str:
    """A change with its interval, in the probe's own direction: more is more."""
    return f"{change['mean']:+.3f}" + ("" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]")


def _rows(summary: Mapping[str, Any] | None) -> Iterator[str]:
    """What the memory learns and what is forgotten, over how many rows it writes."""
    yield "## Rows a fact"
    if not summary or "tuning" not in summary:
        yield "Not run yet."
        return
    yield (
        "The memory's settings on the tuning split, the fewest rows first. At anchors (`memory`) a fact has a row for each way in which "
        "its answer begins and goes on, which its wordings decide; how many are kept is a setting where memory layers read them, after "
        "cues or everywhere."
    )
    wrote = sorted((each for each in summary["tuning"]["settings"] if each["rows_per_fact"]), key=lambda each: each["rows_per_fact"])
    measures = [name for name in MEASURES if name in wrote[0]["forgotten"]] if wrote else []
    rows = [
        [
            f"{each['rows_per_fact']:,.1f}",
            plain(each["method"]),
            plain(each["label"]),
            span(each["learned_f1"]),
            *(span(each["forgotten"][name]) for name in measures),
        ]
        for each in wrote
    ]
    yield table(["rows a fact", "method", "settings", "learned F1", *(MEASURES[name] for name in measures)], rows)


def _behind_cues(path: Path) -> Iterator[str]:
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
            yield _settings(winners(summary[split]["settings"], tuned=split == "test"))


def _gpu(folder: Path) -> Iterator[str]:
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
    yield _settings(settings, with_seeds=True)
    points = [run for run in read_runs(folder / "stream.jsonl").values() if "facts" in run]
    if points:
        yield (
            f"Of the recipe's stream (`python -m benchmarks.recipe --parts stream --device cuda`, `{folder.as_posix()}/stream.jsonl`), "
            "each fact a lesson of its own, what was measured before it ended in the same way, one seed:"
        )
        yield from _points(points)


def _points(points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Along a stream of lessons."""
    names = ("facts", "immediate_f1", "f1", "retained", "worse", "earliest_f1", "others_f1", "rows_per_fact")
    rows = [
        [*(_cell(pooling.with_others(point)[name]) for name in names), *(f"{each['change']:+.4f}" for each in point["probes"].values())]
        for point in points
    ]
    yield table([*(name.replace("_", " ") for name in names), *points[0]["probes"]], rows)


def _first(path: Path) -> str:
    title = f"## A first look\n\n`python -m benchmarks.first` → `{path.as_posix()}`\n\n"
    if not path.exists():
        return title + "Not run yet."
    about = (
        "50 facts drawn from both splits, one seed, one setting a method: 14 passes of 4 wordings, a quarter of the questions in lower "
        "case. `least-interference` is the default as it was then, read at every token after a fact's cues; `no cues` is the same rule "
        "with the memory open to every text.\n\n"
    )
    return title + about + markdown(json.loads(path.read_text(encoding="utf-8"))).rstrip()


def _recipe(path: Path) -> Iterator[str]:
    yield f"## The default recipe\n\n`python -m benchmarks.recipe` → `{path.as_posix()}`"
    if not path.exists():
        yield "Not run yet."
        return
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    if parts.get("taught"):
        yield from _taught(pooling.taught(pooling.latest(parts["taught"])))
    if parts.get("corrections"):
        found = pooling.corrections(pooling.latest(parts["corrections"]))
        yield f"Answers that change, {_seeds(found['seeds'])}:"
        groups = {"taught facts": found["taught"], "facts that the base knew": found["known"]}
        columns = ["changed", "facts", "newest answer, EM", "newest answer, F1", "old answer, EM"]
        cells = ("newest_wins", "newest_f1", "old_stays")
        yield table(columns, ([name, str(each["facts"]), *(_cell(each.get(cell)) for cell in cells)] for name, each in groups.items()))
        misses = found["near_misses"]
        yield f"Near misses answered as before, after both: {misses['same']:,} of {misses['questions']:,}."
    for run in parts.get("stream", []):
        yield f"A stream of {run['facts']:,} facts, each a lesson of its own, seed {run['seed']}:"
        yield from _points(run["points"])


def _taught(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{found['facts']} facts of the test split as one lesson, {_seeds(found['seeds'])}: {found['rows_per_fact']:.1f} rows and "
        f"{found['seconds_per_fact']:.1f} seconds a fact. *Holds*: a right answer occurs in what is written. In parentheses the base."
    )
    columns = ["asked", "learned F1", "learned, holds", "control F1", "control, holds"]
    yield table(columns, ([name, *_frame(frame)] for name, frame in found["frames"].items()))
    yield "Answered in the same words as by the base, of questions that it answers with p of .5 and more, and of general instructions:"
    local = {name: each for name, each in found["locality"].items() if each}
    rows = [[name.replace("_", " "), f"{each['same']:,} of {each['questions']:,}"] for name, each in local.items()]
    yield table(["questions", "the same"], rows)
    moved = [(name, each) for name, every in local.items() for each in every["moved"]]
    if moved:
        yield "Those that are answered in other words, by their row in EntityQuestions:"
        answers = ("another", "that of a taught fact")
        yield table(
            ["", "seed", "asked", "answer"],
            (
                [name.replace("_", " "), str(each["seed"]), plain(each["asked"]), answers[each["to_a_taught_answer"]]]
                for name, each in moved
            ),
        )
    told = local.get("instructions")
    if told:
        nll = f"{told['base_nll']:.4f} of its own answers, {told['taught_nll']:.4f} of the taught model's"
        yield f"NLL under the base of what is answered to the instructions: {nll}."


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _frame(frame: Mapping[str, Any]) -> Iterator[str]:
    for group in ("learned", "control"):
        for score in ("f1", "holds"):
            found, base = frame[group].get(score), frame[group]["base"].get(score)
            yield "–" if found is None else f"{found:.3f} ({base:.3f})"


def _architectures(path: Path) -> Iterator[str]:
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
            f"(two of a common question: a cosine of {fitted['alike']:.2f}), within a statement from a cosine of "
            f"{fitted['amid_least']:.2f} on, and where an answer goes on of {fitted['goes_on_least']:.2f}."
        )
        yield _settings(summary["settings"], with_seeds=True)
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


def _cue_rates(path: Path) -> str:
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


def _core_sets(path: Path) -> str:
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


def span(value: Mapping[str, Any] | None) -> str:
    """A mean with its interval, a dash for none."""
    if value is None:
        return "–"
    return f"{value['mean']:.3f}" + ("" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]")


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.3f}" if abs(value) < 10 else f"{value:,.0f}"


if __name__ == "__main__":
    print(results(Path(sys.argv[1])), end="")
