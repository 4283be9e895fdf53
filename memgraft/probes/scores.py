"""What a probe measured, item by item, and what changed between two measurements of the same items."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field

from memgraft.config import Config
from memgraft.probes.intervals import paired_bootstrap


class Scores(Config):
    """One number per item of a probe. Everything in it is JSON."""

    name: str = Field(description="the probe")
    metric: str = Field(description="what was measured, e.g. F1")
    unit: str = Field(description="of the values, e.g. 0..1 or nats/token")
    higher_is_better: bool
    items: tuple[dict[str, Any], ...] = Field(description="what was measured; equal before and after")
    values: tuple[float, ...]
    weights: tuple[float, ...] | None = Field(default=None, description="how much each item counts in the mean; None: all the same")
    outcomes: tuple[dict[str, Any], ...] = Field(description="what came out, beside the value")

    @property
    def mean(self) -> float:
        """The weighted mean of the values."""
        weights = self.weights or (1.0,) * len(self.values)
        return math.fsum(w * v for w, v in zip(weights, self.values, strict=True)) / math.fsum(weights)


class Change(Config):
    """A probe's mean before and after, with a bootstrap interval of the difference."""

    name: str
    metric: str
    unit: str
    higher_is_better: bool
    before: float
    after: float
    delta: float = Field(description="after - before")
    low: float | None = Field(description="lower end of the interval of delta; None for a single item")
    high: float | None = Field(description="upper end of the interval of delta; None for a single item")
    level: float
    n: int = Field(description="items")
    items: tuple[dict[str, Any], ...] = Field(description="each item with its value and outcome before and after")

    def worse(self, tolerance: float = 0.0) -> bool:
        """Whether the mean got worse by more than `tolerance` (in the metric's unit) and chance does not explain the worsening.

        Chance explains it if the interval reaches 0. A single item has no interval: its change counts as it is.
        """
        sign = -1 if self.higher_is_better else 1
        bounds = [sign * (self.delta if bound is None else bound) for bound in (self.low, self.high)]
        return sign * self.delta > tolerance and min(bounds) > 0

    def summary(self) -> dict[str, Any]:
        """All fields but the items, as JSON."""
        return self.model_dump(mode="json", exclude={"items"})

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f", {self.level:.0%} interval {self.low:+.4f} to {self.high:+.4f}"
        return f"{self.name} {self.metric} {self.before:.4f} → {self.after:.4f} ({self.delta:+.4f}{interval}, n = {self.n})"


def compare(before: Scores, after: Scores, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0) -> Change:
    """The change of a probe's mean between two measurements. Raises ValueError unless both measured the same items in the same way."""
    same = ("name", "metric", "unit", "higher_is_better", "items", "weights")
    differing = [field for field in same if getattr(before, field) != getattr(after, field)]
    if differing:
        raise ValueError(f"scores of {before.name!r} and {after.name!r} can't be compared: {', '.join(differing)} differ")
    interval = paired_bootstrap(before.values, after.values, before.weights, resamples, level, seed)
    items = tuple(
        {**item, "before": {"value": value_before, **was}, "after": {"value": value_after, **became}}
        for item, value_before, was, value_after, became in zip(
            before.items, before.values, before.outcomes, after.values, after.outcomes, strict=True
        )
    )
    return Change(
        name=before.name,
        metric=before.metric,
        unit=before.unit,
        higher_is_better=before.higher_is_better,
        before=before.mean,
        after=after.mean,
        delta=interval.estimate,
        low=interval.low,
        high=interval.high,
        level=level,
        n=interval.n,
        items=items,
    )
