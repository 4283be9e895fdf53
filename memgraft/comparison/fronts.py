"""Fronts of learning against forgetting, and forgetting at equal learning. Plain numbers, no runs and no models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Outcome(Generic[Thing]):
    """What a setting learned (more is better) and forgot (less is better), and the setting."""

    learned: float
    forgotten: float
    of: Thing


def front(outcomes: Sequence[Outcome[Thing]]) -> list[Outcome[Thing]]:
    """The outcomes that no other one beats in both, by rising learning. Of equal ones, the first."""
    best: list[Outcome[Thing]] = []
    for outcome in sorted(outcomes, key=lambda each: (-each.learned, each.forgotten)):
        if not best or outcome.forgotten < best[-1].forgotten:
            best.append(outcome)
    return best[::-1]


@dataclass(frozen=True)
class Equal(Generic[Thing]):
    """A front read off at a given learning: (1 - share) · lower + share · upper."""

    lower: Thing
    upper: Thing
    share: float
    reached: bool  # False: the front learns less everywhere, and this is its best


def at_equal_learning(outcomes: Sequence[Outcome[Thing]], learned: float) -> Equal[Thing]:
    """Where a front (by rising learning, as `front` gives it) has learned this much.

    Between the two outcomes that enclose it, weighted linearly; the lowest where all learn more, the highest where all learn less. So
    that a method that only learns more is not taken as it is, let its front begin at the untaught base.
    """
    above = next((index for index, outcome in enumerate(outcomes) if outcome.learned >= learned), None)
    if above is None:
        return Equal(outcomes[-1].of, outcomes[-1].of, 0.0, reached=False)
    if above == 0 or outcomes[above].learned == learned:
        return Equal(outcomes[above].of, outcomes[above].of, 0.0, reached=True)
    lower, upper = outcomes[above - 1], outcomes[above]
    return Equal(lower.of, upper.of, (learned - lower.learned) / (upper.learned - lower.learned), reached=True)


def neighbours(outcomes: Sequence[Outcome[Thing]], winner: int, count: int) -> list[Outcome[Thing]]:
    """The winner and what is nearest to it on a front, `count` at most, the side that learns more first; in the front's order."""
    nearest = sorted(range(len(outcomes)), key=lambda index: (abs(index - winner), -index))
    return [outcomes[index] for index in sorted(nearest[:count])]
