"""Which of several lessons answers, where one token is at an anchor of each.

Of facts whose names were heard in one place, as those of namesakes are ("Leo Wardrup" and "Ada Wardrup") and those of a subject whose name
has another's in it ("The Alternative to Love"), the one whose name was said most fully; else, and where names were heard in several places,
the one whose anchor the token exceeds most, as among the facts of one lesson. Only facts of one subject add up: a fact that is taught
again, with another answer, is asked for by the same questions, and was taught with the earlier one open.

Shape suffixes: B sequences, T tokens, L lessons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from memgraft.cues import Cues

ONE_PLACE = 8  # tokens within which names were heard in one place
AS_FULLY = 0.15  # names that are said less fully than the best one by no more than this are said as fully


class Near(NamedTuple):
    """The anchors of a lesson that tokens are at."""

    at: Tensor  # (B, T) int64, -1 for none
    above: Tensor  # (B, T) fp32: by how much a token's cosine exceeds the anchor's least one; not above 0 where there is none
    said: Tensor  # (B, T) fp32: how fully the name of the anchor's fact was said (`memgraft.cues.Cues.said`)
    places: Tensor  # (B, T) int64: at which token that was


def undisputed(near: Mapping[int, Near], cues: Mapping[int, Cues]) -> dict[int, Tensor]:
    """For each lesson that answers anywhere: which of its anchors are read at which tokens, (B, T) int64, -1 for none.

    Args:
        near: by number of the lesson.
        cues: of these lessons, with anchors.
    """
    found = {number: each.at for number, each in near.items() if bool((each.at >= 0).any())}
    if len(found) < 2:
        return found
    numbers = list(found)
    above_LBT = torch.stack([near[number].above for number in numbers])
    said_LBT = torch.stack([near[number].said for number in numbers])
    places_LBT = torch.stack([near[number].places for number in numbers])
    found = {number: at.clone() for number, at in found.items()}
    same: dict[tuple[int, int, int, int], bool] = {}
    for sequence, token in ((above_LBT > 0).sum(0) > 1).nonzero().tolist():
        above = above_LBT[:, sequence, token].tolist()
        rivals = [place for place, value in enumerate(above) if value > 0]
        best = _asked_for(rivals, above, said_LBT[:, sequence, token].tolist(), places_LBT[:, sequence, token].tolist())
        first = numbers[best]
        for place in rivals:
            other = numbers[place]
            if place == best:
                continue
            facts = [cues[number].fact_at(int(near[number].at[sequence, token])) for number in (first, other)]
            pair = (first, facts[0], other, facts[1])
            if pair not in same:
                same[pair] = cues[first].same_subject(facts[0], cues[other], facts[1])
            if not same[pair]:
                found[other][sequence, token] = -1
    return {number: at for number, at in found.items() if bool((at >= 0).any())}


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
