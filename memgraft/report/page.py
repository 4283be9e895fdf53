"""What stands on a lesson's page: plain fields, no torch, no HTML. Numbers must be finite; text is shown as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from memgraft.config import Config

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class KeyFigure(Config):
    """A number worth large type, and what it is."""

    value: str
    label: str


class LossPass(Config):
    """The loss over the batches of one pass."""

    mean: Number
    low: Number = Field(description="10th percentile over the batches")
    high: Number = Field(description="90th percentile over the batches")


class OutcomePoint(Config):
    """What a model had learned and forgotten at one moment."""

    label: str = Field(description="the moment or method, e.g. before")
    learned_f1: Share = Field(description="mean F1 on the taught facts, asked in wordings that were not taught")
    nll_change: Number = Field(description="change of the text NLL from the base model's, nats per token")
    low: Number | None = Field(None, description="lower end of the interval of nll_change")
    high: Number | None = Field(None, description="upper end of the interval of nll_change")


class QuestionRow(Config):
    """One taught fact and what the model answered."""

    question: str = Field(description="the wording that was not taught")
    expected: str
    before: str = Field(description="the base model's answer")
    taught_wording: str = Field(description="answer after the lesson to a wording that was taught")
    unseen_wording: str = Field(description="answer after the lesson to `question`")
    learned: bool = Field(description="whether unseen_wording counts as right")


class ProbeRow(Config):
    """A probe before and after, with the interval of the difference: the summary of `memgraft.probes.scores.Change`."""

    name: str
    metric: str
    unit: str
    higher_is_better: bool
    before: Number
    after: Number
    delta: Number
    low: Number | None
    high: Number | None
    level: Share = 0.95
    n: int = Field(ge=1)
    tolerance: Number | None = Field(None, ge=0, description="a worsening up to this was agreed to be acceptable")

    @property
    def reading(self) -> str:
        """The change in words. An interval that reaches 0 shows no change; a distance from the base, 0 at first, can only rise."""
        if self.low is None or self.high is None:
            return "one item, no interval"
        if self.low <= 0 <= self.high:
            return "no change shown"
        if (self.delta > 0) == self.higher_is_better:
            return "better"
        if self.tolerance is not None and abs(self.delta) <= self.tolerance:
            return "worse, within tolerance"
        return "can only rise" if self.before == 0 and not self.higher_is_better and self.tolerance is None else "worse"


class CommitFacts(Config):
    """The lesson as it lies in the store."""

    id: str
    message: str
    facts: int = Field(ge=0)
    rows: int = Field(ge=0, description="slots changed, over all value tables")
    rows_per_fact: Number = Field(ge=0)
    bytes: int = Field(ge=0, description="size of the commit's files")
    seconds: Number = Field(ge=0, description="time that teaching took")
    revert_bit_equal: bool | None = Field(None, description="reverted model equal to the base bit for bit; none: not tried")


class LessonPage(Config):
    """Everything on the page, in its order."""

    title: str
    verdict: str = Field(description="what came out, in one sentence")
    tone: Literal["good", "mixed", "bad"] = Field("mixed", description="colour of the verdict")
    figures: tuple[KeyFigure, ...] = ()
    passes: tuple[LossPass, ...] = Field((), description="loss curve; see loss_passes")
    points: tuple[OutcomePoint, ...] = Field((), description="learning against forgetting")
    nll_tolerance: Number | None = Field(None, gt=0, description="acceptable rise of the text NLL, drawn as a line")
    questions: tuple[QuestionRow, ...] = ()
    probes: tuple[ProbeRow, ...] = ()
    commit: CommitFacts | None = None
    repeat: tuple[str, ...] = Field((), description="commands that make this page again")
    environment: str = Field("", description="versions, model and machine, one line")


def loss_passes(losses: Sequence[Sequence[float]]) -> tuple[LossPass, ...]:
    """The loss curve from the losses of each pass's batches. NaN marks a batch that was skipped; a pass of only those is left out."""
    curve = []
    for losses_of_pass in losses:
        taught = [loss for loss in losses_of_pass if not math.isnan(loss)]
        if taught:
            low, high = np.percentile(taught, [10, 90])
            curve.append(LossPass(mean=math.fsum(taught) / len(taught), low=float(low), high=float(high)))
    return tuple(curve)
