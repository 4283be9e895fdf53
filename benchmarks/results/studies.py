"""What a study measured: tables of settings, of probes, of forgetting at equal learning, of streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.documents import STATEMENTS_EACH
from benchmarks.results.cells import MEASURES, cell, settings_table, signed, span
from benchmarks.study import SEEDED
from memgraft.report.markdown import plain, table


def study(summary: Mapping[str, Any]) -> Iterator[str]:
    """The tables of one study: the comparison's by split, those of the others all at once."""
    tuned, compared = summary["study"] == "pareto", summary["study"] in SEEDED
    if tuned:
        taught = f"Tuning: {summary['tuning_facts']} facts; test: {summary['test_facts']} facts, {summary['test_seeds']} seeds"
    elif compared:
        taught = f"{summary['test_facts']} facts of the test split, {summary['test_seeds']} seeds"
    elif summary["study"] == "documents":
        taught = f"{summary['test_facts']} documents of {STATEMENTS_EACH} statements, a question about each, one seed"
    else:
        taught = f"{summary['test_facts' if summary['study'] == 'stream' else 'tuning_facts']} facts of the test split, one seed"
    yield (
        f"{plain(summary['model'])}, {summary['dtype']}. {taught}; {summary['questions']} questions a probe, "
        f"{summary['text_tokens']:,} tokens of text."
    )
    if tuned and "test" not in summary:
        yield "**Not finished**: these are runs of the tuning split. The command goes on from here."
    for split in ("test", "tuning"):
        if split in summary:
            if compared:
                yield from _compared(split, summary[split])
            else:
                yield settings_table(_by_method(summary[split]))
            if summary[split].get("failed"):
                yield "Settings that broke down:"
                yield "\n".join(
                    f"* {plain(each['method'])}, {plain(each['label'])}: {plain(each['why'])}" for each in summary[split]["failed"]
                )
    for stream in summary.get("streams", ()):
        if stream["along"]:
            yield f"### {plain(stream['method'])}" + (f", {plain(stream['label'])}" if stream["label"] else "")
            names = list(stream["along"][0])
            yield table(names, ([cell(point[name]) for name in names] for point in stream["along"]))


def _compared(split: str, part: Mapping[str, Any]) -> Iterator[str]:
    tested, settings = split == "test", _by_method(part)
    yield f"### {split.capitalize()} split"
    yield from _at_equal_learning(part["at_equal_learning"])
    yield "Each method at the setting that is best" + (
        " on the tuning split, of those that ran here:" if tested else ", by learned F1 × exp(−rise of the text NLL):"
    )
    best = winners(settings, tuned=tested)
    yield settings_table(best, with_seeds=tested)
    if tested:
        yield "Each probe alone, what the base has and how the method's differs (F1 is better higher, NLL lower):"
        yield _by_probe(best)
    if len(best) < len(settings):
        tried = Counter(each["method"] for each in settings if each["method"] != "base")
        yield f"All settings that were run ({', '.join(f'{plain(name)} {count}' for name, count in tried.items())}):"
        yield settings_table(settings, with_seeds=tested)


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
        "Forgetting at the memory's learned F1: read off a method's front between the settings that enclose it, between the untaught base "
        "and its lowest setting where all learn more; its best setting where none learns as much (*its most*)."
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


def _by_probe(settings: Sequence[Mapping[str, Any]]) -> str:
    probes = settings[0]["probes"]
    rows = [["base", *(f"{each['before']:.3f}" for each in probes.values())]]
    rows += [
        [plain(setting["method"]), *(signed(setting["probes"][name]["change"]) for name in probes)]
        for setting in settings
        if setting["method"] != "base"
    ]
    return table(["method", *(f"{name}, {each['metric']}" for name, each in probes.items())], rows)


def rows_a_fact(summary: Mapping[str, Any] | None) -> Iterator[str]:
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
