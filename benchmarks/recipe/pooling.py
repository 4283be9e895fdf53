"""The parts of the benchmark, over their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

Run = Mapping[str, Any]

EARLIEST = 100  # facts of a stream that are looked at alone
KEPT_STILL = ("near_misses", "same_subject", "instructions")
ALONG = ("immediate_f1", "f1", "retained", "earliest_f1", "others_f1", "rows_per_fact")
CHANGED = ("newest_wins", "newest_f1", "old_stays")
MEASURED = (
    "rows_per_fact",
    "seconds_per_fact",
    "frames",
    *KEPT_STILL,
    "taught",
    "known",
    "points",
    "namesakes",
    "first",
    "second",
    "worse",
)
RESULTS = ("id", "seed", "environment", *MEASURED)


def latest(runs: Sequence[Run]) -> list[Run]:
    """The last run and those that differ from it by their seed only."""
    return [run for run in runs if _settings(run) == _settings(runs[-1])]


def latest_streams(runs: Sequence[Run]) -> list[Run]:
    """The latest of each length."""
    return [run for count in dict.fromkeys(run["facts"] for run in runs) for run in latest([run for run in runs if run["facts"] == count])]


def _settings(run: Run) -> dict[str, Any]:
    settings = {name: value for name, value in run.items() if name not in RESULTS}
    return {**settings, "recipe": {**run.get("recipe", {}), "seed": None}}


def taught(runs: Sequence[Run]) -> dict[str, Any]:
    """Rows a fact and frames, means over the runs; what stayed as it was, in all of them together."""
    return {
        "seeds": [run["seed"] for run in runs],
        "facts": runs[0]["facts"],
        **{name: round(fmean(run[name] for run in runs), 4) for name in ("rows_per_fact", "seconds_per_fact")},
        "frames": mean_of([run["frames"] for run in runs]),
        "locality": {name: counted(name, runs) for name in KEPT_STILL},
    }


def corrections(runs: Sequence[Run]) -> dict[str, Any]:
    """How often the newest answer wins, over all changed facts; near misses in all runs together."""
    groups = {}
    for group in ("taught", "known"):
        facts = sum(run[group]["facts"] for run in runs)
        weighed = {
            name: round(sum(run[group]["facts"] * run[group][name] for run in runs if run[group]["facts"]) / facts, 4)
            for name in CHANGED
            if facts
        }
        groups[group] = {"facts": facts, **weighed}
    return {"seeds": [run["seed"] for run in runs], **groups, "near_misses": counted("near_misses", runs)}


def streams(runs: Sequence[Run]) -> dict[str, Any]:
    """What streams of one length end with: means over the runs, and the changes of the probes."""
    ends = [with_others(run["points"][-1]) for run in runs]
    return {
        "seeds": [run["seed"] for run in runs],
        **{name: round(fmean(values), 4) if (values := [end[name] for end in ends if end[name] is not None]) else None for name in ALONG},
        "worse": sum(end["worse"] for end in ends),
        "probes": mean_of([end["probes"] for end in ends]),
    }


def namesakes(runs: Sequence[Run]) -> dict[str, Any]:
    """F1 of the facts that came first and of those about their namesakes, means over the runs."""
    return {
        "seeds": [run["seed"] for run in runs],
        "facts": runs[0]["facts"],
        **{name: sum(run[name] for run in runs) for name in ("namesakes", "worse")},
        **{name: mean_of([run[name] for run in runs]) for name in ("first", "second")},
    }


def together(runs: Sequence[Run]) -> dict[str, Any]:
    """F1 of the facts and of those about their namesakes in the same lesson, means over the runs."""
    return {
        "seeds": [run["seed"] for run in runs],
        "facts": runs[0]["facts"],
        "namesakes": sum(run["namesakes"] for run in runs),
        **{name: mean_of([run[name] for run in runs]) for name in ("first", "second")},
    }


def with_others(point: Run) -> dict[str, Any]:
    """A point of a stream with the F1 of all facts but the earliest; none where there are no others."""
    others = point["facts"] - EARLIEST
    return {
        **point,
        "others_f1": round((point["f1"] * point["facts"] - point["earliest_f1"] * EARLIEST) / others, 4) if others > 0 else None,
    }


def counted(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Questions and those answered as before, summed; and which were not, by seed."""
    found = [run[name] for run in runs if run[name]]
    if not found:
        return {}
    questions, same = (sum(each[field] for each in found) for field in ("questions", "same"))
    moved = [{"seed": run["seed"], **each} for run in runs for each in run[name].get("moved", ())]
    likely = {field: round(fmean(each[field] for each in found), 4) for field in ("base_nll", "taught_nll") if field in found[0]}
    return {"questions": questions, "same": same, "share": round(same / questions, 4) if questions else None, **likely, "moved": moved}


def mean_of(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of nested fields of numbers that are alike in all, the means."""
    return {
        name: mean_of([tree[name] for tree in trees]) if isinstance(value, Mapping) else round(fmean(tree[name] for tree in trees), 6)
        for name, value in trees[0].items()
    }
