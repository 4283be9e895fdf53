"""What stands on a comparison's page, made from its summary. Plain fields, no HTML; text is shown as it is."""

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


class MethodPoint(Config):
    """One setting of a method: what it learned and what it forgot."""

    method: str
    label: str = Field(description="its settings")
    learned: Number
    learned_low: Number | None
    learned_high: Number | None
    forgotten: Number
    low: Number | None
    high: Number | None
    best: bool = Field(description="no other setting of the method beats it in both")
    control: Number | None = Field(None, description="F1 on facts of the same kind that were not taught")
    seconds: Number | None
    bytes: Number | None
    peak_bytes: Number | None


class MethodProbe(Config):
    """One probe before and after a method taught, at the method's best setting."""

    method: str
    label: str
    probe: str
    metric: str
    before: Number
    after: Number
    change: Number
    low: Number | None
    high: Number | None


class EqualRow(Config):
    """A rival where it learned as much as the memory."""

    method: str
    learned: Number
    reached: bool
    forgotten: Number
    low: Number | None
    high: Number | None
    difference: Number = Field(description="rival minus memory, mean over items; above 0: for NLL the rival forgets more")
    difference_low: Number | None
    difference_high: Number | None
    worse: Literal["more", "less", "no difference shown"] = Field(description="whether the rival forgets more than the memory")


class Sample(Config):
    """A fact and what every method answers."""

    question: str
    expected: str
    answers: tuple[str, ...] = Field(description="in the order of `ComparisonPage.answered_by`")
    right: tuple[bool, ...]


class ComparisonPage(Config):
    """Everything on the page, in its order."""

    title: str
    verdict: str
    tone: Tone
    measure: str = Field(description="what counts as forgetting")
    unit: str
    points: tuple[MethodPoint, ...]
    equal: tuple[EqualRow, ...]
    probes: tuple[MethodProbe, ...] = Field(description="every probe at each method's best setting")
    already_right: Number = Field(description="F1 of the untouched base on the facts")
    remarks: tuple[str, ...] = Field(description="what to keep in mind")
    answered_by: tuple[str, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[str, ...] = Field(description="settings that there was no time for")
    failed: tuple[str, ...] = Field((), description="settings that broke down, and why")
    repeat: tuple[str, ...]
    environment: str


def comparison_page(
    summary: Mapping[str, Any],
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    runs: Sequence[Mapping[str, Any]],
    skipped: Sequence[tuple[str, str]] = (),
    remarks: Sequence[str] = (),
    repeat: Sequence[str] = (),
    environment: str = "",
    samples: int = 20,
) -> ComparisonPage:
    """The page of a comparison.

    Args:
        summary: as `memgraft.comparison.summary.summarise` gives it.
        facts: (question as it was asked, expected answer), in the order of the runs' answers.
        runs: with `method`, `settings`, `answers`, and the F1 of each under scores → learned.
        skipped: methods and settings that there was no time for.
        remarks: what to keep in mind about the data.
        samples: facts shown with everyone's answers.
    """
    measure = next(name for name in MEASURES if name in summary["fronts"])
    fronts = summary["fronts"][measure]
    best = {(method, point["label"]) for method, points in fronts.items() for point in points}
    points = [_point(each, measure, (each["method"], each["label"]) in best) for each in summary["settings"] if each["method"] != BASE]
    equal = [_equal(method, each[measure], measure) for method, each in (summary["at_equal_learning"].get("rivals") or {}).items()]
    verdict, tone = _verdict(summary, measure, equal)
    runs = [run for run in runs if "failed" not in run]
    chosen = [_winner(runs, summary, method) for method in dict.fromkeys(run["method"] for run in runs)]
    settings = {repr(each["settings"]): each for each in summary["settings"]}
    base = next(each for each in summary["settings"] if each["method"] == BASE)
    return ComparisonPage(
        title=title,
        verdict=verdict,
        tone=tone,
        measure=MEASURES[measure][0],
        unit=MEASURES[measure][1],
        points=tuple(points),
        equal=tuple(equal),
        probes=tuple(row for run in chosen if run["method"] != BASE for row in _probes(settings[repr(run["settings"])])),
        already_right=base["learned_f1"]["mean"],
        remarks=tuple(remarks),
        answered_by=tuple(run["method"] for run in chosen),
        samples=tuple(
            Sample(
                question=question,
                expected=expected,
                answers=tuple(run["answers"][index] for run in chosen),
                right=tuple(run["scores"]["learned"]["values"][index] == 1 for run in chosen),
            )
            for index, (question, expected) in enumerate(facts[:samples])
        ),
        skipped=tuple(f"{method}: {label}" for method, label in skipped),
        failed=tuple(f"{each['method']}: {each['label']}: {each['why']}" for each in summary["failed"]),
        repeat=tuple(repeat),
        environment=environment,
    )


def _point(setting: Mapping[str, Any], measure: str, best: bool) -> MethodPoint:
    learned, forgotten = setting["learned_f1"], setting["forgotten"][measure]
    return MethodPoint(
        method=setting["method"],
        label=setting["label"],
        learned=learned["mean"],
        learned_low=learned["low"],
        learned_high=learned["high"],
        forgotten=forgotten["mean"],
        low=forgotten["low"],
        high=forgotten["high"],
        best=best,
        control=setting["control_f1"]["mean"] if "control_f1" in setting else None,
        seconds=setting["seconds"],
        bytes=setting["bytes"],
        peak_bytes=setting["peak_bytes"],
    )


def _probes(setting: Mapping[str, Any]) -> Iterator[MethodProbe]:
    for name, probe in setting["probes"].items():
        change = probe["change"]
        yield MethodProbe(
            method=setting["method"],
            label=setting["label"],
            probe=name,
            metric=probe["metric"],
            before=probe["before"],
            after=probe["after"],
            change=change["mean"],
            low=change["low"],
            high=change["high"],
        )


def _equal(method: str, row: Mapping[str, Any], measure: str) -> EqualRow:
    forgotten, difference = row["forgotten"], row["mean_minus_memory"]
    sign = -1 if measure in SHARES else 1  # a lower F1 is more forgetting
    bounds = [sign * bound for bound in (difference["low"], difference["high"]) if bound is not None]
    clear = len(bounds) == 2 and min(bounds) * max(bounds) > 0
    return EqualRow(
        method=method,
        learned=row["learned_f1"],
        reached=row["reached"],
        forgotten=forgotten["mean"],
        low=forgotten["low"],
        high=forgotten["high"],
        difference=difference["mean"],
        difference_low=difference["low"],
        difference_high=difference["high"],
        worse="no difference shown" if not clear else "more" if bounds[0] > 0 else "less",
    )


def _verdict(summary: Mapping[str, Any], measure: str, equal: Sequence[EqualRow]) -> tuple[str, Tone]:
    own = summary["at_equal_learning"]
    if not own:
        return "The memory was not run, so there is nothing to compare with.", "mixed"
    what, unit = MEASURES[measure]
    learned, forgotten = own["learned_f1"], own["forgotten"][measure]["mean"]
    start = f"The memory learns F1 {learned:.2f} at a {what} of {_amount(forgotten, measure)} ({unit})."
    rivals = [row for row in equal if row.method != RETRIEVAL and not row.method.startswith(MEMORY)]
    level = [row for row in rivals if row.reached]
    rival = min(level, key=lambda row: row.forgotten) if level else max(rivals, key=lambda row: row.learned, default=None)
    found = next((row for row in equal if row.method == RETRIEVAL), None)
    end = f" Retrieval, which teaches nothing, answers with F1 {found.learned:.2f}." if found else ""
    if rival is None:
        return start + end, "mixed"
    words = {"more": "more than the memory", "less": "less than the memory", "no difference shown": "no clear difference"}[rival.worse]
    amount = f"{_amount(rival.forgotten, measure)}: {words}"
    if level:
        text = f" Where it learns as much, the best rival, {rival.method}, has {amount}."
        tones: dict[str, Tone] = {"more": "good", "less": "bad", "no difference shown": "mixed"}
        return start + text + end, tones[rival.worse]
    text = f" No rival that trains learned as much; the best of them, {rival.method}, reached {rival.learned:.2f}, and has {amount}."
    return start + text + end, "mixed" if rival.worse == "less" else "good"


def _amount(value: float, measure: str) -> str:
    return f"{value:.0%}" if measure in SHARES else f"{value:+.4f}"


def _winner(runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    """A method's run with the best balance of learning and forgetting."""
    balance = {repr(each["settings"]): each["balance"] for each in summary["settings"] if each["method"] == method}
    return max((run for run in runs if run["method"] == method), key=lambda run: balance[repr(run["settings"])])
