"""Which of several facts answers, where one token is at an anchor of each.

Of facts whose names were heard in one place, as those of namesakes are ("Leo Wardrup" and "Ada Wardrup") and those of a subject whose name
has another's in it ("The Alternative to Love"), the one whose name was said most fully. Else the one whose anchor the token exceeds most:
where names were heard in several places; and in one lesson, where they are of one subject, whose name may have been found longer for one
than for the other, or where of one only cues are known, which may be of its question. Of one lesson a token reads one fact. Of several
lessons only facts of one subject add up: a fact that is taught again, with another answer, is asked for by the same questions, and was
taught with the earlier one open.

Shape suffixes: B sequences, T tokens, F facts of one lesson that are open, U as many without repetition, R rivals, facts of all lessons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from memgraft.anchors import Opened
from memgraft.cues import Cues

ONE_PLACE = 8  # tokens within which names were heard in one place
AS_FULLY = 0.15  # names that are said less fully than the best one by no more than this are said as fully


class Near(NamedTuple):
    """The facts of a lesson that are open, and those of their anchors that tokens are at."""

    facts: Tensor  # (U,) int64, as anchors number them
    at: Tensor  # (B, T, U) int64: an anchor of each fact, -1 for none
    above: Tensor  # (B, T, U) fp32: by how much a token's cosine exceeds the anchor's least one; not above 0 where there is none
    said: Tensor  # (B, T, U) fp32: how fully the fact's name was said (`memgraft.cues.Cues.said`)
    places: Tensor  # (B, T, U) int32: at which token that was


def last_said(meant: Tensor, facts: Tensor, opened: Opened) -> tuple[Tensor, Tensor]:
    """How fully each fact's name was said in its last mention, as it stands or in lower case, and where: `Near.said` and `Near.places`.

    Args:
        meant: (U,) int64, ascending: the facts.
        facts: (F,) which of them each column of what is opened is.
    """
    shape = (*opened.tokens.shape[:2], len(meant))
    if opened.said is None or opened.places is None:
        return torch.zeros(shape, device=meant.device), torch.full(shape, -1, dtype=torch.int32, device=meant.device)
    known = torch.isin(facts, meant)
    fact = torch.searchsorted(meant, facts[known])

    def of_each(values_BTF: Tensor, none: float) -> Tensor:
        return values_BTF.new_full(shape, none).scatter_reduce_(2, fact.expand_as(values_BTF), values_BTF, "amax")

    tokens, said, places = (each.to(meant.device)[..., known] for each in (opened.tokens, opened.said, opened.places))
    places = places.masked_fill(~tokens, -1)
    said = said.nan_to_num(nan=-torch.inf).masked_fill(~tokens | (places < of_each(places, -1)[..., fact] - ONE_PLACE), -torch.inf)
    fully = of_each(said, -torch.inf)
    return fully, of_each(places.masked_fill(said < fully[..., fact], -1), -1)


def undisputed(near: Mapping[int, Near], cues: Mapping[int, Cues]) -> dict[int, Tensor]:
    """For each lesson that answers anywhere: which of its anchors are read at which tokens, (B, T) int64, -1 for none.

    Args:
        near: by number of the lesson.
        cues: of these lessons, with anchors.
    """
    near = {number: each for number, each in near.items() if bool((each.at >= 0).any())}
    if not near:
        return {}
    rivals = [(number, fact) for number, each in near.items() for fact in each.facts.tolist()]
    at_BTR, above_BTR, said_BTR, places_BTR = (torch.cat(parts, -1) for parts in zip(*(each[1:] for each in near.values()), strict=True))
    found = {number: each.at.gather(-1, each.above.argmax(-1, keepdim=True))[..., 0] for number, each in near.items()}
    there_BTR = above_BTR > 0
    nearest_BT1 = above_BTR.argmax(-1, keepdim=True)
    fully_BT = said_BTR.gather(-1, nearest_BT1)[..., 0] >= said_BTR.masked_fill(~there_BTR, -torch.inf).amax(-1) - AS_FULLY
    lessons_BT = torch.stack([(each.above > 0).any(-1) for each in near.values()]).sum(0)
    disputed_BT = (there_BTR.sum(-1) > 1) & ~(fully_BT & (lessons_BT == 1))  # else the nearest one of the only lesson
    subjects = _Subjects(cues)
    values = (each[disputed_BT].tolist() for each in (at_BTR, above_BTR, said_BTR, places_BTR))
    for (sequence, token), at, above, said, places in zip(disputed_BT.nonzero().tolist(), *values, strict=True):
        here = sorted((place for place, value in enumerate(above) if value > 0), key=lambda place: -above[place])
        best = rivals[_asked_for(here, above, said, places)]
        answering: dict[int, int] = {}
        for place in here:
            number = rivals[place][0]
            if number not in answering and (subjects.same(best, rivals[place]) or subjects.untold(best, rivals[place])):
                answering[number] = at[place]
        for number in near:
            found[number][sequence, token] = answering.get(number, -1)
    return {number: at for number, at in found.items() if bool((at >= 0).any())}


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

    def untold(self, one: tuple[int, int], other: tuple[int, int]) -> bool:
        """Whether they are of one lesson and not both named."""
        return one[0] == other[0] and not all(self._cues[number].named(fact) for number, fact in (one, other))


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
