"""The rivals where they learned as much as the memory, under every measure of forgetting, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from memgraft.config import Config
from memgraft.report.page import Number

Tone = Literal["good", "mixed", "bad"]

MEMORY, BASE, RETRIEVAL = "memory", "base", "retrieval"
# By which a comparison is judged, the most precise measure first.
MEASURES = {
    "text_nll": ("rise of the text NLL", "nats per token"),
    "answer_nll": ("rise of the answers' NLL", "nats per token"),
    "qa_f1": ("drop of F1 on other questions", "share of the base's"),
    "accuracy": ("drop of accuracy on other questions", "share of the base's"),
}
SHARES = ("qa_f1", "accuracy")
# The verdict is of the first of each that was measured: the headline, a relative drop, and the more precise rise.
JUDGED = (SHARES, ("text_nll", "answer_nll"))


class EqualRow(Config):
    """A rival where it learned as much as the memory, or the most, under one measure of forgetting."""

    method: str
    measure: str = Field(description="what counts as forgetting")
    unit: str
    learned: Number
    reached: bool = Field(description="whether the rival's mean gets as high as the memory's")
    most: Number = Field(description="the most that a setting on the rival's front learned")
    learned_difference: Number | None = Field(description="learned F1, rival minus memory; none: they were taught different facts")
    learned_low: Number | None
    learned_high: Number | None
    forgotten: Number
    low: Number | None
    high: Number | None
    memory: Number = Field(description="what the memory forgot")
    memory_low: Number | None
    memory_high: Number | None
    difference: Number = Field(description="rival minus memory, mean over items; above 0: for NLL the rival forgets more")
    difference_low: Number | None
    difference_high: Number | None
    worse: Literal["more", "less", "no difference shown"] = Field(description="whether the rival forgets more than the memory")

    @property
    def within(self) -> bool:
        """Whether the rival's mean stays below the memory's, by a difference whose interval has 0."""
        if self.reached or self.learned_low is None or self.learned_high is None:
            return False
        return self.learned_low <= 0 <= self.learned_high

    @property
    def beside(self) -> str:
        """The difference in learned F1 and its interval, e.g. "−0.03 [−0.08, +0.02]"; empty where it isn't known."""
        found = (self.learned_difference, self.learned_low, self.learned_high)
        mean, *bounds = ["" if each is None else f"{round(each, 2) + 0.0:+.2f}".replace("-", "−") for each in found]
        return mean + (f" [{', '.join(bounds)}]" if all(bounds) else "")

    @property
    def note(self) -> str:
        """What to know of `learned` beside the memory's."""
        if self.reached:
            return self.beside and f"{self.beside} beside the memory"
        text = "its most, less than the memory" + (" within the interval" if self.within else "")
        return f"{text}: {self.beside}" if self.beside else text


def equal_rows(summary: Mapping[str, Any]) -> dict[str, list[EqualRow]]:
    """Rows of the rivals under each measure, from a summary by `memgraft.comparison.summary.summarise`. Empty without the memory."""
    own = summary["at_equal_learning"]
    if not own:
        return {}
    return {
        name: [_equal(method, each[name], name, own["forgotten"][name]) for method, each in own["rivals"].items()]
        for name in summary["fronts"]
    }


def _equal(method: str, row: Mapping[str, Any], measure: str, memory: Mapping[str, Any]) -> EqualRow:
    forgotten, difference, learned = row["forgotten"], row["mean_minus_memory"], row["learned_f1_minus_memory"] or {}
    sign = -1 if measure in SHARES else 1  # a lower F1 is more forgetting
    bounds = [sign * bound for bound in (difference["low"], difference["high"]) if bound is not None]
    clear = len(bounds) == 2 and min(bounds) * max(bounds) > 0
    return EqualRow(
        method=method,
        measure=MEASURES[measure][0],
        unit=MEASURES[measure][1],
        learned=row["learned_f1"],
        reached=row["reached"],
        most=row["most_learned_f1"],
        learned_difference=learned.get("mean"),
        learned_low=learned.get("low"),
        learned_high=learned.get("high"),
        forgotten=forgotten["mean"],
        low=forgotten["low"],
        high=forgotten["high"],
        memory=memory["mean"],
        memory_low=memory["low"],
        memory_high=memory["high"],
        difference=difference["mean"],
        difference_low=difference["low"],
        difference_high=difference["high"],
        worse="no difference shown" if not clear else "more" if bounds[0] > 0 else "less",
    )


def verdict(own: Mapping[str, Any], equal: Mapping[str, Sequence[EqualRow]]) -> tuple[str, Tone]:
    """One sentence on the memory, one on the best rival under each measure, and one on retrieval.

    Good where every measure shows that the rival forgets more; bad where one shows that a rival forgets less and learns as much, as far
    as intervals can tell, and none shows more.
    """
    if not own:
        return "The memory was not run, so there is nothing to compare with.", "mixed"
    judged = [found for names in JUDGED if (found := next((name for name in names if name in equal), None))]
    amounts = [f"a {MEASURES[name][0]} of {amount(own['forgotten'][name]['mean'], name)} ({MEASURES[name][1]})" for name in judged]
    start = f"The memory learns F1 {own['learned_f1']:.2f} at {' and '.join(amounts)}."
    asked = next((row for row in equal[judged[0]] if row.method == RETRIEVAL), None)
    end = f" Retrieval, which teaches nothing, answers with F1 {asked.most:.2f}." if asked else ""
    best = {name: rival for name in judged if (rival := _best(equal[name]))}
    if not best:
        return start + end, "mixed"
    tones = {_tone(rival) for rival in best.values()}
    tone: Tone = "good" if tones == {"good"} else "bad" if "bad" in tones and "good" not in tones else "mixed"
    return start + "".join(_sentences(best)) + end, tone


def _best(rows: Sequence[EqualRow]) -> EqualRow | None:
    """Of the rivals that train: the one that forgets least of those that learn as much, as far as intervals can tell, or learns most."""
    rivals = [row for row in rows if row.method != RETRIEVAL and not row.method.startswith(MEMORY)]
    level = [row for row in rivals if row.reached or row.within]
    return min(level, key=lambda row: row.forgotten) if level else max(rivals, key=lambda row: row.learned, default=None)


def _tone(rival: EqualRow) -> Tone:
    if rival.worse == "more":
        return "good"
    return "bad" if rival.worse == "less" and (rival.reached or rival.within) else "mixed"


def _sentences(best: Mapping[str, EqualRow]) -> Iterator[str]:
    """On the best rivals; one that is best under every measure has one sentence."""
    words = {"more": "more than the memory", "less": "less than the memory", "no difference shown": "no clear difference"}
    if len(best) == 1:
        ((name, row),) = best.items()
        yield _sentence(row, f"{amount(row.forgotten, name)}: {words[row.worse]}")
        return
    clauses = {name: f"a {row.measure} of {amount(row.forgotten, name)}, {words[row.worse]}" for name, row in best.items()}
    first, *others = best.values()
    if all((row.method, row.reached, row.learned) == (first.method, first.reached, first.learned) for row in others):
        yield _sentence(first, "; and ".join(clauses.values()))
    else:
        yield from (_sentence(row, clauses[name], f" by the {row.measure}") for name, row in best.items())


def _sentence(row: EqualRow, has: str, by: str = "") -> str:
    if row.reached:
        return f" Where it learns as much, the best rival{by}, {row.method}, has {has}."
    if row.within:
        learns = f"learns F1 {row.learned:.2f}, a difference within the interval ({row.beside})"
        return f" The best rival{by}, {row.method}, {learns}, and has {has}."
    return f" No rival that trains learned as much; the best of them{by}, {row.method}, reached {row.learned:.2f}, and has {has}."


def amount(value: float, measure: str) -> str:
    """What was forgotten, in the measure's unit."""
    return f"{round(value, 2) + 0.0:.0%}" if measure in SHARES else f"{value:+.4f}"
