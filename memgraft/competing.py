"""Which of several lessons answers, where one token is at an anchor of each.

The one whose anchor the token exceeds most, as among the facts of one lesson. Facts that another one's question opens by chance, since its
subject's name has theirs in it ("LOVE" and "The Alternative to Love"), would else answer beside the fact that was asked for. Only facts
of one subject, each of which names the other's nearly in full, add up: a fact that is taught again, with another answer, is asked for by
the same questions, and was taught with the earlier one open.

Shape suffixes: B sequences, T tokens, L lessons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from memgraft.cues import Cues


class Near(NamedTuple):
    """The anchors of a lesson that tokens are at."""

    at: Tensor  # (B, T) int64, -1 for none
    above: Tensor  # (B, T) fp32: by how much a token's cosine exceeds the anchor's least one; not above 0 where there is none


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
    found = {number: at.clone() for number, at in found.items()}
    same: dict[tuple[int, int, int, int], bool] = {}
    for sequence, token in ((above_LBT > 0).sum(0) > 1).nonzero().tolist():
        above = above_LBT[:, sequence, token]
        first = numbers[int(above.argmax())]
        for place in (above > 0).nonzero()[:, 0].tolist():
            other = numbers[place]
            if above[place] == above.max():
                continue
            facts = [cues[number].fact_at(int(near[number].at[sequence, token])) for number in (first, other)]
            pair = (first, facts[0], other, facts[1])
            if pair not in same:
                same[pair] = cues[first].same_subject(facts[0], cues[other], facts[1])
            if not same[pair]:
                found[other][sequence, token] = -1
    return {number: at for number, at in found.items() if bool((at >= 0).any())}
