"""Fronts and forgetting at equal learning, by hand."""

from __future__ import annotations

import pytest

from memgraft.comparison.fronts import Outcome, at_equal_learning, front, neighbours


def outcomes(*points: tuple[float, float]) -> list[Outcome[str]]:
    return [Outcome(learned, forgotten, chr(ord("a") + i)) for i, (learned, forgotten) in enumerate(points)]


def test_a_front_has_what_nothing_beats_in_both() -> None:
    found = front(outcomes((0.2, 0.1), (0.5, 0.3), (0.4, 0.4), (0.9, 0.5), (0.5, 0.35), (0.9, 0.6), (0.1, 0.1)))
    assert [outcome.of for outcome in found] == ["a", "b", "d"]


def test_of_equal_outcomes_the_first_is_on_the_front() -> None:
    assert [outcome.of for outcome in front(outcomes((0.5, 0.1), (0.5, 0.1)))] == ["a"]


@pytest.mark.parametrize(
    ("learned", "lower", "upper", "share", "reached"),
    [
        (0.3, "a", "b", 0.25, True),  # a quarter of the way from .2 to .6
        (0.6, "b", "b", 0.0, True),
        (0.1, "a", "a", 0.0, True),  # all learn more: the most cautious one
        (0.9, "c", "c", 0.0, False),  # all learn less: the boldest one, marked
    ],
)
def test_a_front_is_read_off_at_equal_learning(learned: float, lower: str, upper: str, share: float, reached: bool) -> None:
    equal = at_equal_learning(front(outcomes((0.2, 0.1), (0.6, 0.2), (0.8, 0.5))), learned)
    assert (equal.lower, equal.upper, equal.reached) == (lower, upper, reached)
    assert equal.share == pytest.approx(share)


def test_neighbours_are_the_nearest_on_the_front_in_its_order() -> None:
    points = front(outcomes((0.2, 0.1), (0.6, 0.2), (0.8, 0.5), (0.9, 0.9)))
    assert [outcome.of for outcome in neighbours(points, 1, 3)] == ["a", "b", "c"]
    assert [outcome.of for outcome in neighbours(points, 3, 2)] == ["c", "d"]
    assert [outcome.of for outcome in neighbours(points, 0, 9)] == ["a", "b", "c", "d"]
