"""Runs of one benchmark as a summary (JSON) and as a Markdown table, with 95 % bootstrap intervals over items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memgraft.probes import Interval, mean_interval, paired_bootstrap

HEADER = (
    "arm",
    "learned F1",
    "learned EM",
    "control F1",
    "WebQuestions F1 (change)",
    "WikiText-2 NLL (change)",
    "rows a fact",
    "rows",
    "kB",
    "CPU s",
)


def summarise(runs: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Means, intervals and costs of each run; changes are against the run of the arm "base", item by item.

    Args:
        runs: as read_runs gives them, in the order of the table; one of them is the base's.
        shared: what all runs have in common, put in front.
    """
    base = next(run for run in runs if run["recipe"]["arm"] == "base")
    return {**shared, "arms": [_arm(run, base) for run in runs]}


def _arm(run: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    scores = run["scores"]
    costs = ("setup_seconds", "seconds", "measure_seconds", "bytes", "rows", "rows_per_fact", "losses", "environment")
    return {
        "arm": run["recipe"]["arm"],
        "settings": run["recipe"]["settings"],
        "learned_f1": _mean(scores["learned"]["values"]),
        "learned_em": _mean(scores["learned"]["exact_match"]),
        "control_f1": _mean(scores["control"]["values"]),
        "webquestions_f1": _with_change(base["scores"]["webquestions"], scores["webquestions"]),
        "text_nll": _with_change(base["scores"]["wikitext"], scores["wikitext"]),
        **{name: run[name] for name in costs},
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return _fields(mean_interval(values))


def _with_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    weights = after.get("weights")
    change = paired_bootstrap(before["values"], after["values"], weights)
    return {"mean": round(mean_interval(after["values"], weights, resamples=1).estimate, 6), "change": _fields(change)}


def _fields(interval: Interval) -> dict[str, Any]:
    bounds = {name: None if bound is None else round(bound, 6) for name, bound in (("low", interval.low), ("high", interval.high))}
    return {"mean": round(interval.estimate, 6), **bounds, "n": interval.n}


def markdown(summary: Mapping[str, Any]) -> str:
    """The summary's table, one line an arm."""
    lines = [HEADER, ["---"] + ["---:"] * (len(HEADER) - 1), *(_line(arm) for arm in summary["arms"])]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _line(arm: Mapping[str, Any]) -> list[str]:
    rows_per_fact, rows = arm["rows_per_fact"], arm["rows"]
    return [
        arm["arm"],
        _span(arm["learned_f1"]),
        f"{arm['learned_em']['mean']:.3f}",
        _span(arm["control_f1"]),
        _changed(arm["webquestions_f1"], arm["arm"]),
        _changed(arm["text_nll"], arm["arm"]),
        "–" if rows_per_fact is None else f"{rows_per_fact:,.0f}",
        "–" if rows is None else f"{rows:,}",
        f"{arm['bytes'] / 1000:,.0f}",
        f"{arm['seconds']:,.0f}",
    ]


def _span(value: Mapping[str, Any]) -> str:
    bounds = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['mean']:.3f}{bounds}"


def _changed(value: Mapping[str, Any], arm: str) -> str:
    change = value["change"]
    if arm == "base":
        return f"{value['mean']:.3f}"
    bounds = "" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]"
    return f"{value['mean']:.3f} ({change['mean']:+.3f}{bounds})"
