"""A comparison as Markdown, for trackers and terminals. Text from data and models is escaped, so that it stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from memgraft.report.comparison import ComparisonPage


def comparison_markdown(page: ComparisonPage) -> str:
    """The page's twin: verdict, tables, sample answers, how to repeat it."""
    parts = [f"# {plain(page.title)}", plain(page.verdict), "## Learned and forgotten"]
    columns = ("method", "settings", "learned F1", "control F1", f"{page.measure} ({page.unit})", "CPU s", "kB", "peak MB")
    parts.append(
        table(
            columns,
            (
                (
                    f"**{plain(p.method)}**" if p.best else plain(p.method),
                    plain(p.label),
                    span(p.learned, p.learned_low, p.learned_high),
                    "–" if p.control is None else f"{p.control:.3f}",
                    span(p.forgotten, p.low, p.high),
                    "–" if p.seconds is None else f"{p.seconds:,.1f}",
                    "–" if p.bytes is None else f"{p.bytes / 1e3:,.0f}",
                    "–" if p.peak_bytes is None else f"{p.peak_bytes / 1e6:,.0f}",
                )
                for p in page.points
            ),
        )
    )
    if page.beyond:
        parts.append("Beyond the right end of the page's plot:\n\n" + "\n".join(f"* {plain(each)}" for each in page.beyond))
    parts.append("Bold: on the method's front. In brackets: 95 % bootstrap intervals over items.")
    parts.append(f"The untouched base: learned F1 {page.already_right:.3f}.")
    if page.remarks:
        parts.append("\n".join(f"* {plain(each)}" for each in page.remarks))
    if page.equal:
        rows = []
        for e in page.equal:
            learned = f"{e.learned:.3f}" + (f" ({plain(e.note)})" if e.note else "")
            amounts = span(e.forgotten, e.low, e.high), span(e.memory, e.memory_low, e.memory_high)
            rows.append((plain(e.method), learned, f"{e.measure} ({e.unit})", *amounts, e.worse))
        names = ("rival", "learned F1", "measured by", "rival's", "memory's", "forgets, beside the memory")
        parts += ["## At equal learning", table(names, rows)]
    if page.probes:
        probes = [
            (plain(p.method), plain(p.probe), plain(p.metric), f"{p.before:.3f}", f"{p.after:.3f}", span(p.change, p.low, p.high))
            for p in page.probes
        ]
        titles = ("method", "probe", "measured by", "base", "taught", "change")
        parts += ["## Every probe, at each method's best setting", table(titles, probes)]
    samples = []
    for sample in page.samples:
        answers = [("✓ " if right else "✗ ") + plain(answer) for answer, right in zip(sample.answers, sample.right, strict=True)]
        samples.append((plain(sample.question), plain(sample.expected), *answers))
    parts += ["## Answers", table(("question", "expected", *map(plain, page.answered_by)), samples)]
    if page.skipped:
        parts += ["## Not run, for want of time", "\n".join(f"* {plain(each)}" for each in page.skipped)]
    if page.failed:
        parts += ["## Broke down", "\n".join(f"* {plain(each)}" for each in page.failed)]
    if page.ran:
        parts += ["## What was run", "\n".join(f"* {plain(name)}: {plain(value)}" for name, value in page.ran)]
    if page.repeat:
        parts += ["## How to repeat this", "\n".join("    " + "".join(c if c.isprintable() else " " for c in line) for line in page.repeat)]
    parts.append(plain(page.environment))
    return "\n\n".join(part for part in parts if part) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(text: str) -> str:
    """Text on one line that no Markdown reader takes for markup."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return re.sub(r"([\\`*_{}\[\]()#+!|~$@:-])", r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def span(value: float, low: float | None, high: float | None) -> str:
    """A value with its interval."""
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")
