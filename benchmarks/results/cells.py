"""Numbers with their intervals, and the tables that several sections have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.recipe import pooling
from memgraft.report.markdown import plain, table

BESIDE = {"near misses": "near_miss_f1", "leaks": "leaked_f1"}
MEASURES = {"qa_f1": "F1 drop", "answer_nll": "answer NLL", "text_nll": "text NLL"}


def span(value: Mapping[str, Any] | None) -> str:
    """A mean with its interval, a dash for none."""
    if value is None:
        return "–"
    return f"{value['mean']:.3f}" + ("" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]")


def signed(change: Mapping[str, Any]) -> str:
    """A change with its interval, in the probe's own direction: more is more."""
    return f"{change['mean']:+.3f}" + ("" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]")


def cell(value: float | None) -> str:
    """A count, or a number to as many digits as its size deserves; a dash for none."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.3f}" if abs(value) < 10 else f"{value:,.0f}"


def settings_table(settings: list[Mapping[str, Any]], with_seeds: bool = False) -> str:
    """What each setting learned, forgot and cost."""
    measures = [name for name in MEASURES if name in settings[0]["forgotten"]]
    seeds = ["seeds"] if with_seeds else []
    beside = {name: field for name, field in BESIDE.items() if any(field in each for each in settings)}
    learned, costs = ("learned F1", "net"), ("rows a fact", "CPU s", "MB", "peak MB")
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
            cell(each.get("rows_per_fact")),
            cell(each["seconds"]),
            cell(None if each["bytes"] is None else each["bytes"] / 1e6),
            cell(None if each["peak_bytes"] is None else each["peak_bytes"] / 1e6),
        ]
        for each in settings
    ]
    return table(columns, rows)


def points_table(points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Along a stream of lessons."""
    names = ("facts", "immediate_f1", "f1", "retained", "worse", "earliest_f1", "others_f1", "rows_per_fact")
    rows = [
        [*(cell(pooling.with_others(point)[name]) for name in names), *(f"{each['change']:+.4f}" for each in point["probes"].values())]
        for point in points
    ]
    yield table([*(name.replace("_", " ") for name in names), *points[0]["probes"]], rows)
