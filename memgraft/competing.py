"""Which of several facts answers, where one token is at an anchor of each.

Of facts whose names were heard in one place, as those of namesakes are ("Leo Wardrup" and "Ada Wardrup") and those of a subject whose name
has another's in it ("The Alternative to Love"), the one whose name was said most fully. Else the one whose anchor the token exceeds most:
where names were heard in several places; and in one lesson, where they are of one subject, whose name may have been found longer for one
than for the other, or where the nearest one's name is nearly all in the other's: what is missing may be cues of its question. Of one
lesson a token reads one fact. Of several lessons only facts of one subject add up: a fact that is taught again, with another answer, is
asked for by the same questions, and was taught with the earlier one open.

Shape suffixes: B sequences, T tokens, F facts of one lesson that are open, U as many without repetition, R rivals, facts of all lessons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from memgraft.anchors import Opened
from memgraft.cues import Cues

ONE_PLACE = 8  # tokens within which names were heard in one place
AS_FULLY = 0.15  # names that are said less fully than the best one by no more than this are said as fully


class Near(NamedTuple):
    """The facts of a lesson that are open, and those of their anchors that tokens are at."""

    facts: Tensor  # (U,) int64, ascending, as anchors number them
    at: Tensor  # (B, T, U) int64: an anchor of each fact, -1 for none
    above: Tensor  # (B, T, U) fp32: by how much a token's cosine exceeds the anchor's least one; not above 0 where there is none
    meant: Tensor  # (F,) int64: which of these facts each of what is opened is
    opened: Opened


def last_said(near: Near, opened: Opened) -> tuple[Tensor, Tensor]:
    """How fully each fact's name was said in its last mention, and where, both (B, T, U): as it stands or in lower case.

    Facts of which it is not told, and at tokens where they are not open, have -inf and -1.

    Args:
        opened: some of what is opened, with how fully names were said.
    """
    assert opened.said is not None
    assert opened.places is not None
    fact = torch.searchsorted(near.facts, near.meant[torch.isin(near.opened.facts, opened.facts)])
    shape = near.at.shape

    def of_each(values_BTF: Tensor, none: float) -> Tensor:
        return values_BTF.new_full(shape, none).scatter_reduce_(2, fact.expand_as(values_BTF), values_BTF, "amax")

    places = opened.places.masked_fill(~opened.tokens, -1)
    too_early = places < of_each(places, -1)[..., fact] - ONE_PLACE
    said = opened.said.nan_to_num(nan=-torch.inf).masked_fill(~opened.tokens | too_early, -torch.inf)
    fully = of_each(said, -torch.inf)
    return fully, of_each(places.masked_fill(said < fully[..., fact], -1), -1)


def undisputed(
    near: Mapping[int, Near], cues: Mapping[int, Cues], told: Callable[[int, Opened], Opened] | None = None
) -> dict[int, Tensor]:
    """For each lesson that answers anywhere: which of its anchors are read at which tokens, (B, T) int64, -1 for none.

    Args:
        near: by number of the lesson.
        cues: of these lessons, with anchors.
        told: tells how fully names were said, of those facts that it matters for. None: that is told of what is opened.
    """
    near = {number: each for number, each in near.items() if bool((each.at >= 0).any())}
    found = {number: each.at.gather(-1, each.above.argmax(-1, keepdim=True))[..., 0] for number, each in near.items()}
    if not near:
        return found
    there = [each.above > 0 for each in near.values()]
    several_BT = torch.cat(there, -1).sum(-1) > 1
    if not bool(several_BT.any()):
        return found
    rivals = [(number, fact) for number, each in near.items() for fact in each.facts.tolist()]
    at, above = (torch.cat(parts, -1)[several_BT] for parts in zip(*((each.at, each.above) for each in near.values()), strict=True))
    names = [_names(number, each, several_BT, told) for number, each in near.items()]
    said, places = (torch.cat(parts, -1) for parts in zip(*names, strict=True))  # (N, R), as at and above
    most = said.masked_fill(above <= 0, -torch.inf).amax(-1)
    fully = said.gather(-1, above.argmax(-1, keepdim=True))[:, 0] >= most - AS_FULLY
    lessons = torch.stack([each.any(-1)[several_BT] for each in there]).sum(0)
    disputed = ~(fully & (lessons == 1))  # else it is the nearest of the only lesson
    subjects = _Subjects(cues)
    values = zip(*(each[disputed].tolist() for each in (several_BT.nonzero(), at, above, said, places)), strict=True)
    for (sequence, token), ats, aboves, saids, spots in values:
        here = sorted((place for place, value in enumerate(aboves) if value > 0), key=lambda place: -aboves[place])
        best = rivals[_asked_for(here, aboves, saids, spots)]
        answering: dict[int, int] = {}
        for place in here:
            number = rivals[place][0]
            if number not in answering and (subjects.same(best, rivals[place]) or subjects.may_be_same(best, rivals[place])):
                answering[number] = ats[place]
        for number in near:
            found[number][sequence, token] = answering.get(number, -1)
    return {number: at for number, at in found.items() if bool((at >= 0).any())}


def _names(number: int, near: Near, several_BT: Tensor, told: Callable[[int, Opened], Opened] | None) -> tuple[Tensor, Tensor]:
    """`last_said` at some tokens, (N, U), of the facts that have an anchor at one of these."""
    opened = near.opened.of(torch.isin(near.meant, near.facts[(near.above > 0)[several_BT].any(0)]))
    if told is not None and len(opened.facts):
        opened = told(number, opened).to(near.at.device)
    if opened.said is None:
        at = near.at[several_BT]
        return torch.zeros(at.shape, device=at.device), at.new_full(at.shape, -1, dtype=torch.int32)
    fully, places = last_said(near, opened)
    return fully[several_BT], places[several_BT]


class _Subjects:
    """Which facts are of one subject. Facts are a lesson's number and the fact's."""

    def __init__(self, cues: Mapping[int, Cues]) -> None:
        self._cues = cues
        self._same: dict[frozenset[tuple[int, int]], bool] = {}

    def same(self, one: tuple[int, int], other: tuple[int, int]) -> bool:
        pair = frozenset((one, other))
        if pair not in self._same:
            self._same[pair] = one == other or self._cues[one[0]].same_subject(one[1], self._cues[other[0]], other[1])
        return self._same[pair]

    def may_be_same(self, one: tuple[int, int], other: tuple[int, int]) -> bool:
        """Whether they are of one lesson, and nothing of the other's name is not in the first one's."""
        return one[0] == other[0] and not self._cues[other[0]].named_apart(other[1], self._cues[one[0]], one[1])


def _asked_for(rivals: list[int], above: list[float], said: list[float], places: list[int]) -> int:
    """The one of the rivals that is asked for."""
    winners: list[int] = []
    waiting = sorted(rivals, key=lambda each: places[each])
    while waiting:
        here = [waiting.pop()]
        while waiting and places[here[-1]] - places[waiting[-1]] <= ONE_PLACE:
            here.append(waiting.pop())
        most = max(said[each] for each in here)
        winners.append(max((each for each in here if said[each] >= most - AS_FULLY), key=lambda each: above[each]))
    return max(winners, key=lambda each: above[each])
