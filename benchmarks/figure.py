"""A study's figure, from its summary.

    python -m benchmarks.figure results/pareto/summary.json docs/pareto.svg      # README's: learned against forgotten
    python -m benchmarks.figure results/stream/summary.json docs/stream.svg      # both, along the stream; or documents
    python -m benchmarks.figure results/ranking/summary.json docs/ranking.svg    # both, over t

Learned against forgotten shows every setting of every method: the test split where all methods have runs there, else the tuning split. A
method's front is joined by a line, and its winner by docs/protocol.md is large. What forgot far more than any front is not shown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.along import STREAMS
from benchmarks.results.studies import winners
from memgraft.comparison.summary import BASE, MEMORY

COLORS = ("#b5482f", "#c98a1b", "#6a51a3", "#4a7c3a", "#a03a6e", "#70543e", "#777777", "#333333", "#9aa83a")
OWN = "#1f6f8b"


def draw(summary: Path, target: Path) -> None:
    """Write the figure as SVG; equal summaries give equal bytes."""
    found = json.loads(summary.read_text(encoding="utf-8"))
    with rc_context({"svg.hashsalt": "memgraft", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7.6, 4.2 if found["study"] == "pareto" else 3.2), layout="constrained")
        {"pareto": _fronts, "stream": _along, "documents": _along, "ranking": _over_t}[found["study"]](figure, found)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#e2e2e2", linewidth=0.8)
        figure.savefig(target, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def _fronts(figure: Figure, found: Mapping[str, Any]) -> None:
    tested = methods_of(found.get("test", {"settings": []})) >= methods_of(found["tuning"])
    part = found["test"] if tested else found["tuning"]
    settings = [setting for setting in part["settings"] if setting["method"] != BASE]
    best = {setting["method"]: setting for setting in winners(settings, tuned=tested)}
    colors = _colors(best)
    axes = figure.add_subplot()
    axes.axvline(0, color="#888888", linewidth=1)
    for method, outcomes in part["fronts"]["text_nll"].items():
        axes.plot([o["forgotten"] for o in outcomes], [o["learned_f1"] for o in outcomes], color=colors[method], linewidth=1.2, alpha=0.7)
    for setting in settings:
        axes.plot(*_point(setting), marker="o", markersize=4, color=colors[setting["method"]], alpha=0.6)
    for method, setting in best.items():
        x, y = _point(setting)
        axes.plot(x, y, marker="s" if method == MEMORY else "o", markersize=9, color=colors[method], label=method)
    axes.set(xlabel="rise of WikiText-2 NLL, nats per token (right is forgetting)", ylabel="learned F1, unseen questions")
    reach = max(outcome["forgotten"] for outcomes in part["fronts"]["text_nll"].values() for outcome in outcomes)
    axes.set(xlim=(-0.05 * reach, 1.2 * reach), ylim=(-0.03, 1.06))
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _along(figure: Figure, found: Mapping[str, Any]) -> None:
    (base,) = (setting for setting in found["test"]["settings"] if setting["method"] == BASE)
    text = base["probes"]["wikitext"]["before"]
    unit = STREAMS[found["study"]]
    streams: dict[str, Any] = {}  # the first setting of each method, which was tried whatever came of it
    for each in found["streams"]:
        if each["along"]:
            streams.setdefault(each["method"], each["along"])
    gain = "text_gain" if unit == "documents" else "learned_f1"
    learned = {method: [(point[unit], point[gain]) for point in points] for method, points in streams.items()}
    rises = {method: [(point[unit], point["wikitext"] - text) for point in points] for method, points in streams.items()}
    _lines(figure, learned, rises, f"{unit} taught, one after the other")
    if unit == "documents":
        figure.axes[0].set(ylim=(0, None), ylabel="fall of the documents' own NLL, nats")


def _over_t(figure: Figure, found: Mapping[str, Any]) -> None:
    settings = [setting for setting in found["test"]["settings"] if setting["method"] != BASE]
    learned: dict[str, list[tuple[float, float]]] = {}
    rises: dict[str, list[tuple[float, float]]] = {}
    for setting in sorted(settings, key=lambda setting: setting["settings"]["recipe"]["t"]):
        x, y = _point(setting)
        t = setting["settings"]["recipe"]["t"]
        learned.setdefault(setting["method"], []).append((t, y))
        rises.setdefault(setting["method"], []).append((t, x))
    _lines(figure, learned, rises, "t, slots that may change in a step")
    for axes in figure.axes:
        axes.set_xscale("log")
    figure.axes[1].set_yscale("symlog", linthresh=0.01)  # what changes every slot forgets a hundred times as much as the rest
    figure.axes[1].autoscale(axis="y")


def _lines(
    figure: Figure, learned: Mapping[str, list[tuple[float, float]]], rises: Mapping[str, list[tuple[float, float]]], over: str
) -> None:
    """Learned F1 on the left, the rise of the text NLL on the right."""
    colors = _colors(learned)
    for axes, lines, what in zip(figure.subplots(1, 2), (learned, rises), ("learned F1", "rise of WikiText-2 NLL, nats"), strict=True):
        for method, points in lines.items():
            own = method == MEMORY
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colors[method], label=method, zorder=3 if own else 2)
        axes.set(xlabel=over, ylabel=what)
    figure.axes[0].set(ylim=(-0.03, 1.06))
    figure.axes[1].legend(loc="best", frameon=False, fontsize=9)


def _colors(methods: Iterable[str]) -> dict[str, str]:
    rivals = [method for method in methods if method != MEMORY]
    return {MEMORY: OWN, **{method: COLORS[number % len(COLORS)] for number, method in enumerate(rivals)}}


def methods_of(part: Mapping[str, Any]) -> set[str]:
    """Names of the methods that have runs."""
    return {setting["method"] for setting in part["settings"]}


def _point(setting: Mapping[str, Any]) -> tuple[float, float]:
    return setting["forgotten"]["text_nll"]["mean"], setting["learned_f1"]["mean"]


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
