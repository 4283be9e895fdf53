"""The README's figure: learned against forgotten, an arm a point, from a benchmark's summary.

python -m benchmarks.figure results/first/summary.json docs/first.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure


def draw(summary: Path, target: Path) -> None:
    """Write the figure as SVG; equal summaries give equal bytes."""
    arms = [arm for arm in json.loads(summary.read_text(encoding="utf-8"))["arms"] if arm["arm"] != "base"]
    with rc_context({"svg.hashsalt": "memgraft", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color="#888888", linewidth=1)
        # From left to right, names in turns above and below: neighbours do not write over each other.
        for number, arm in enumerate(sorted(arms, key=lambda arm: float(arm["text_nll"]["change"]["mean"]))):
            learned, change = arm["learned_f1"], arm["text_nll"]["change"]
            color, marker = ("#b5482f", "s") if arm["arm"].startswith("lora") else ("#1f6f8b", "o")
            axes.errorbar(
                change["mean"],
                learned["mean"],
                xerr=[[change["mean"] - change["low"]], [change["high"] - change["mean"]]],
                yerr=[[learned["mean"] - learned["low"]], [learned["high"] - learned["mean"]]],
                color=color,
                marker=marker,
                markersize=8,
                linewidth=1.4,
            )
            axes.annotate(
                arm["arm"],
                (change["mean"], learned["mean"]),
                (7, (7, -18)[number % 2]),
                textcoords="offset points",
                color=color,
                weight="bold",
            )
        axes.set(xlabel="rise of WikiText-2 NLL, nats per token (right is forgetting)", ylabel="learned F1, unseen questions")
        axes.set_ylim(-0.03, 1.08)
        axes.margins(x=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e2e2e2", linewidth=0.8)
        figure.savefig(target, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
