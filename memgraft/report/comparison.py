"""What stands on a comparison's page, made from its summary. Plain fields, no HTML; text is shown as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from memgraft.comparison.summary import NOTHING_TO_FORGET
from memgraft.config import Config
from memgraft.errors import DataError
from memgraft.report.equal import BASE, MEASURES, EqualRow, Tone, amount, equal_rows, verdict
from memgraft.report.page import Number

BROKEN = 3.0  # nats: with this rise a text is 20 times as perplexing, and how much worse a model is tells nothing
SCORES = {"qa_f1": "F1", "accuracy": "accuracy"}  # measures that are a drop of what the base has
VERSIONS = ("memgraft", "torch", "transformers", "peft")


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
    reach: Number = Field(description="right end of the plot, in `unit`: what the fronts need, broken models aside")
    beyond: tuple[str, ...] = Field(description="settings that forgot more than that")
    equal: tuple[EqualRow, ...] = Field(description="each rival once for each measure")
    probes: tuple[MethodProbe, ...] = Field(description="every probe at each method's best setting")
    already_right: Number = Field(description="F1 of the untouched base on the facts")
    remarks: tuple[str, ...] = Field(description="what to keep in mind")
    answered_by: tuple[str, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[str, ...] = Field(description="settings that there was no time for")
    failed: tuple[str, ...] = Field((), description="settings that broke down, and why")
    ran: tuple[tuple[str, str], ...] = Field(description="what was run, on what: names and values")
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
    model: str = "",
    dtype: str = "",
    environment: str = "",
    samples: int = 20,
) -> ComparisonPage:
    """The page of a comparison.

    Args:
        summary: as `memgraft.comparison.summary.summarise` gives it.
        facts: (question as it was asked, expected answer), in the order of the runs' answers.
        runs: with `method`, `settings`, `answers`, and the F1 of each under scores → learned; where they have them, `seed`, `facts` and
            `environment` (`memgraft.comparison.runs.environment`) stand under what was run.
        skipped: methods and settings that there was no time for.
        remarks: what to keep in mind about the data.
        model: name of the base.
        dtype: of its weights.
        environment: one line for the foot of the page.
        samples: facts shown with everyone's answers.

    Raises:
        DataError: the base answers none of the probes' questions, and there is no other probe.
    """
    measure = next((name for name in MEASURES if name in summary["fronts"]), None)
    if measure is None:
        raise DataError(NOTHING_TO_FORGET)
    fronts = summary["fronts"][measure]
    best = {(method, point["label"]) for method, points in fronts.items() for point in points}
    points = [_point(each, measure, (each["method"], each["label"]) in best) for each in summary["settings"] if each["method"] != BASE]
    equal = equal_rows(summary)
    words, tone = verdict(summary["at_equal_learning"], equal)
    reach = _reach(points)
    runs = [run for run in runs if "failed" not in run]
    chosen = [_winner(runs, summary, method) for method in dict.fromkeys(run["method"] for run in runs)]
    settings = {repr(each["settings"]): each for each in summary["settings"]}
    base = next(each for each in summary["settings"] if each["method"] == BASE)
    return ComparisonPage(
        title=title,
        verdict=words,
        tone=tone,
        measure=MEASURES[measure][0],
        unit=MEASURES[measure][1],
        points=tuple(points),
        reach=reach,
        beyond=tuple(f"{p.method}: {p.label}: {amount(p.forgotten, measure)}" for p in points if p.forgotten > reach),
        equal=tuple(row for rows in zip(*equal.values(), strict=True) for row in rows),
        probes=tuple(row for run in chosen if run["method"] != BASE for row in _probes(settings[repr(run["settings"])])),
        already_right=base["learned_f1"]["mean"],
        remarks=(*remarks, *_set_up(runs), *_unjudged(base, fronts=summary["fronts"])),
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
        ran=tuple(_ran(runs, model, dtype)),
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


def _set_up(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the memory needed before anything was taught, which is not among the seconds of teaching."""
    if seconds := max((run.get("setup_seconds") or 0.0 for run in runs), default=0.0):
        yield f"CPU s are of teaching. Grafting the memory took {seconds:,.0f} more, once for the model."


def _unjudged(base: Mapping[str, Any], fronts: Mapping[str, Any]) -> Iterator[str]:
    """On the probes that tell nothing, since the base is right nowhere."""
    for measure, metric in SCORES.items():
        names = [name for name, probe in base["probes"].items() if probe["metric"] == metric]
        if names and measure not in fronts:
            yield f"{', '.join(names)}: the base answers none of these questions, so that what is forgotten can't be told by them."


def _reach(points: Sequence[MethodPoint]) -> float:
    """What the fronts need and a little more; the points of broken models don't count, unless there are no others."""
    fronts = [point.forgotten for point in points if point.best]
    return 1.2 * max(0.01, *([each for each in fronts if each <= BROKEN] or fronts or [0.0]))


def _ran(runs: Sequence[Mapping[str, Any]], model: str, dtype: str) -> Iterator[tuple[str, str]]:
    """Names and values; several where runs that an earlier call left on disk had others."""
    where = [run.get("environment", {}) for run in runs]
    packages = [each.get("packages", {}) for each in where]
    versions = [f"{name} {found}" for name in VERSIONS if (found := _each(each.get(name) for each in packages))]
    scores = next(run for run in runs if run["method"] == BASE)["scores"]
    asked = [
        f"{name}: {len(probe['values'])} {'windows' if probe['metric'] == 'text NLL' else 'questions'}" for name, probe in scores.items()
    ]
    yield from (
        (name, value)
        for name, value in (
            ("model", model),
            ("weights", dtype),
            ("seed", _each(run.get("seed") for run in runs)),
            ("facts taught", _each(run.get("facts") for run in runs)),
            ("asked", ", ".join(asked)),
            ("device", _each(each.get("device") for each in where)),
            ("CPU", _each(each.get("cpu") for each in where)),
            ("versions", ", ".join(versions)),
            ("git revision", _each(each.get("git_revision") for each in where)),
        )
        if value
    )


def _each(values: Iterable[object]) -> str:
    """Different values in the order in which they come, those aside that are missing."""
    return "; ".join(dict.fromkeys(str(value) for value in values if value is not None))


def _winner(runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    """A method's run with the best balance of learning and forgetting."""
    balance = {repr(each["settings"]): each["balance"] for each in summary["settings"] if each["method"] == method}
    return max((run for run in runs if run["method"] == method), key=lambda run: balance[repr(run["settings"])])
