"""The page's plots, as inline SVG.

matplotlib draws in a few marker colours, which are then replaced by the page's CSS variables, so that the plots follow the
light and dark scheme; text stays text, in the page's font. Equal data gives equal bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memgraft.report.comparison import MethodPoint
from memgraft.report.page import LossPass, OutcomePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Marker colour → CSS variable. The colours never reach the page.
_INK, _MUTED, _LINE, _ACCENT, _PAPER, _WARN = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_GOOD, _BAD = "#010209", "#01020a"
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _LINE: "--line",
    _ACCENT: "--accent",
    _PAPER: "--paper",
    _WARN: "--warn",
    _GOOD: "--good",
    _BAD: "--bad",
}

_STYLE: dict[str, Any] = {
    "axes.edgecolor": _MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 10,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.color": _MUTED,
    "ytick.labelcolor": _INK,
}

_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "*", "d")
_COLOURS = (_ACCENT, _WARN, _GOOD, _BAD, _INK, _MUTED)
_LINES = ("-", "--", ":")


def loss_plot(passes: Sequence[LossPass]) -> str:
    """Mean loss and the middle 80 % of the batches, over the passes."""
    numbers = range(1, len(passes) + 1)

    def draw(axes: Axes) -> None:
        axes.fill_between(numbers, [p.low for p in passes], [p.high for p in passes], color=_ACCENT, alpha=0.18, linewidth=0)
        axes.plot(numbers, [p.mean for p in passes], color=_ACCENT, linewidth=2, marker="o", markersize=4.5)
        axes.set(xlabel="pass", ylabel="loss (nats per token)", xticks=numbers[:: max(1, len(passes) // 8)])
        axes.set_ylim(bottom=min(0.0, *(p.low for p in passes)))

    return _svg("loss", draw)


def outcome_plot(points: Sequence[OutcomePoint], tolerance: float | None = None) -> str:
    """What was learned (up) against what was forgotten (right). Points that coincide share one mark."""
    labels: dict[tuple[float, float], list[str]] = {}
    for point in points:
        labels.setdefault((point.nll_change, point.learned_f1), []).append(point.label)
    ends = [end for p in points for end in (p.nll_change, p.low, p.high) if end is not None]
    reach = max(0.01, *(abs(end) for end in ends), tolerance or 0.0) * 1.25

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=_MUTED, linewidth=1)
        if tolerance is not None:
            axes.axvline(tolerance, color=_WARN, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                f"limit +{tolerance:g}", (tolerance, 1.06), (-4, 0), textcoords="offset points", ha="right", va="top", color=_WARN
            )
        for p in points:
            if p.low is not None and p.high is not None:
                axes.plot([p.low, p.high], [p.learned_f1] * 2, color=_ACCENT, linewidth=2, alpha=0.6, solid_capstyle="butt")
        for i, ((x, y), names) in enumerate(labels.items()):
            axes.plot(
                [x], [y], marker=_MARKERS[i % len(_MARKERS)], markersize=9, color=_ACCENT, markeredgecolor=_PAPER, markeredgewidth=1.2
            )
            left = x > reach / 2
            offset = (-8 if left else 8, 8 if y < 0.9 else -16)
            label = " = ".join(names)
            text = axes.annotate(label, (x, y), offset, textcoords="offset points", ha="right" if left else "left", weight="bold")
            text.set_in_layout(False)  # a long label must not squeeze the axes
        axes.set(xlabel="change of text NLL (nats per token; right is forgetting)", ylabel="learned F1, unseen wordings")
        axes.set(xlim=(-reach if min(ends) < -reach / 4 else -reach / 4, reach), ylim=(-0.05, 1.08))
        axes.locator_params(axis="x", nbins=6)

    return _svg("outcome", draw)


def comparison_plot(points: Sequence[MethodPoint], xlabel: str, reach: float) -> str:
    """What each setting learned (up) against what it forgot (right); a method's front is joined by a line.

    Args:
        reach: where the axis of what was forgotten ends; how many settings lie beyond is written in the plot.
    """
    methods = list(dict.fromkeys(point.method for point in points))
    beyond = sum(point.forgotten > reach for point in points)
    columns = 3

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=_MUTED, linewidth=1)
        for number, method in enumerate(methods):
            colour, marker, line = _mark(number)
            own = [point for point in points if point.method == method]
            front = sorted((p for p in own if p.best), key=lambda p: p.learned)
            axes.plot([p.forgotten for p in front], [p.learned for p in front], color=colour, linewidth=1.6, linestyle=line)
            for p in own:
                if p.low is not None and p.high is not None:
                    axes.plot([p.low, p.high], [p.learned] * 2, color=colour, linewidth=1.2, alpha=0.5, solid_capstyle="butt")
                if p.learned_low is not None and p.learned_high is not None:
                    axes.plot([p.forgotten] * 2, [p.learned_low, p.learned_high], color=colour, linewidth=1.2, alpha=0.5)
            axes.plot(
                [p.forgotten for p in own],
                [p.learned for p in own],
                linestyle="none",
                marker=marker,
                markersize=7,
                color=colour,
                markeredgecolor=_PAPER,
                label=method,
            )
        if beyond:
            axes.annotate(f"{beyond} beyond →", (1, 1), xycoords="axes fraction", ha="right", va="top", color=_MUTED, fontsize=8)
        left = min([-0.05 * reach, *(1.1 * point.forgotten for point in points)])
        axes.set(xlabel=xlabel, ylabel="learned F1", xlim=(left, reach), ylim=(-0.05, 1.08))
        if methods:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=columns, fontsize=8)

    return _svg("comparison", draw, height=3.7 + 0.2 * -(-len(methods) // columns))


def _mark(number: int) -> tuple[str, str, str]:
    """Colour, marker and line of the method with this number: no two of 18 have the same line, no two of 36 the same marks."""
    turn = number // len(_COLOURS)
    return _COLOURS[(number + turn) % len(_COLOURS)], _MARKERS[number % len(_MARKERS)], _LINES[turn % len(_LINES)]


def _svg(name: str, draw: Callable[[Axes], None], height: float = 3.7) -> str:
    """Draw one pair of axes and return a bare <svg> element, its ids prefixed with `name`, sized by the page."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", {**_STYLE, "svg.hashsalt": name}]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(5.4, height), layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser's fonts draw the text
            figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' ?font-family: [^;"]*;', "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
