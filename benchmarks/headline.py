"""README's tables from the summaries of the studies: python -m benchmarks.headline results

tests/test_readme.py holds README to them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results.cells import span
from benchmarks.results.studies import winners
from memgraft.report.markdown import table

QA = ("webquestions", "triviaqa", "popqa")
NAMES = {  # of what README compares; its other methods are in docs/results.md
    "base": "base",
    "memory": "**memgraft**",
    "retrieval": "retrieval (BM25)",
    "memory (tfidf, sgd)": "sparse memory finetuning",
    "lora": "LoRA",
    "lora + replay": "LoRA + replay",
    "full": "full finetuning",
    "osf": "OSF",
    "shira": "SHiRA",
}

Value = Mapping[str, Any]


def rivals(summary: Mapping[str, Any], behind: Mapping[str, Any]) -> str:
    """The test split: each method at the setting that is best on the tuning split.

    Args:
        behind: the same, of rivals behind the memory's cues.
    """
    columns = ("", "seeds", "learned F1", "net", "near misses", "leaks", "F1 drop", "text NLL", "MB", "CPU s")
    rows = []
    for each in winners(summary["test"]["settings"], tuned=True):
        if each["method"] in NAMES:
            rows.append(_cells(NAMES[each["method"]], each))
        if each["method"] == "lora":
            (same,) = (other for other in behind["test"]["settings"] if other["settings"] == each["settings"])
            rows.append(_cells("LoRA, used only where the memory's cues open", same))
    return table(columns, rows)


def _cells(name: str, each: Value) -> list[str]:
    lost, text, base = each["forgotten"]["qa_f1"], each["forgotten"]["text_nll"], each["method"] == "base"
    changed = [_share(lost), _change(text), f"{each['bytes'] / 1e6:.1f}", f"{each['seconds']:,.0f}"]
    return [
        name,
        str(len(each["seeds"])),
        span(each["learned_f1"]),
        "" if base else span(each["net_f1"]),
        span(each["near_miss_f1"]),
        span(each["leaked_f1"]),
        *([f"of {_f1_before(each):.3f}", *[""] * (len(changed) - 1)] if base else changed),
    ]


def _f1_before(setting: Value) -> float:
    probes = [setting["probes"][name] for name in QA]
    return float(sum(each["before"] * each["change"]["n"] for each in probes) / sum(each["change"]["n"] for each in probes))


def recipe(summary: Mapping[str, Any]) -> str:
    """The default recipe beyond the comparison, a line for each part of `benchmarks.recipe`; of the streams the first and the last."""
    own = summary["methods"]["memgraft"]
    frames = {name: each["learned"] for name, each in own["frames"].items()}
    misses, subject, told = (own["locality"][name] for name in ("near_misses", "same_subject", "instructions"))
    changed = own["corrections"]
    rows = [
        [
            f"{summary['parts']['taught'][-1]['facts']} facts in one lesson",
            _seeds(own["taught_seeds"]),
            f"F1 {frames['few-shot']['f1']:.3f} after five examples, {frames['zero-shot']['f1']:.3f} without any, "
            f"{frames['chat']['f1']:.3f} in the chat template; of answers in whole sentences {frames['sentence']['holds']:.3f} hold the "
            "right one",
        ],
        [
            "answered in the base's own words",
            _seeds(own["taught_seeds"]),
            f"{misses['same']} of {misses['questions']} near misses, {told['same']} of {told['questions']} general instructions; "
            f"{subject['same']} of {subject['questions']} other questions about a taught subject",
        ],
        [
            f"then other answers for {changed['taught']['facts']} of these, and for {changed['known']['facts']} that the base knew",
            _seeds(changed["seeds"]),
            f"the newest wins in {changed['taught']['newest_wins']:.2f} and {changed['known']['newest_wins']:.2f}, the old one in "
            f"{changed['taught']['old_stays']:.2f} and {changed['known']['old_stays']:.2f}",
        ],
    ]
    streams = list(own.get("stream_retention", {}).items())
    for count, stream in streams[:1] + streams[1:][-1:]:
        probes = stream["probes"]
        lost = 0.0 - 100 * sum(probes[name]["change"] for name in QA) / sum(probes[name]["base"] for name in QA)
        others = "" if stream["others_f1"] is None else f", {stream['others_f1']:.3f} of the others"
        rows.append(
            [
                f"{int(count):,} facts, one after the other, a lesson each",
                _seeds(stream["seeds"]),
                f"F1 {stream['immediate_f1']:.3f} right after its lesson, {stream['f1']:.3f} at the end, {stream['earliest_f1']:.3f} of "
                f"the first 100{others}; F1 on other questions, lost: {lost:.1f} %; answer NLL of NQ {probes['nq_open']['change']:+.4f}, "
                f"text NLL {probes['wikitext']['change']:+.4f}",
            ]
        )
    if found := own.get("namesakes"):
        first, second = found["first"], found["second"]
        rows.append(
            [
                f"{found['facts']:,} facts, a lesson each, and then {found['namesakes']:,} of subjects named like two of theirs",
                _seeds(found["seeds"]),
                f"F1 of the first {first['f1_before']:.3f} before their namesakes, {first['f1']:.3f} after; "
                f"of the namesakes {second['immediate_f1']:.3f} right after the lesson, {second['f1']:.3f} at the end",
            ]
        )
    return table(("", "seeds", "found"), rows)


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _share(value: Value) -> str:
    return f"{100 * value['mean']:.0f} %" + ("" if value["low"] is None else f" [{100 * value['low']:.0f}, {100 * value['high']:.0f}]")


def _change(value: Value) -> str:
    mean = value["mean"]
    return "0" if abs(mean) < 5e-5 else f"{mean:+.4f}" if abs(mean) < 0.02 else f"{mean:+.2f}"


def main(folder: Path) -> str:
    """Both tables."""

    def read(*name: str) -> Any:
        return json.loads(folder.joinpath(*name).read_text(encoding="utf-8"))

    first = rivals(read("pareto", "summary.json"), read("pareto", "behind_cues.json"))
    return first + "\n\n" + recipe(read("recipe", "summary.json"))


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
