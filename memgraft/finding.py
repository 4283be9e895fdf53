"""Finding the cues of facts: the tokens whose states recur in every wording of a fact and hardly anywhere else.

What recurs in the wordings of "Where was Leo Wardrup born?" and not in the world is " Ward" and "rup" after "Leo". Labels, such as a
subject's name, are not needed; a name alone could not tell one Leo Wardrup from another either. " Leo" recurs as well, next to them: it
stands out from nothing, since the world has many, but it is part of the name, by which this one is told from Ada Wardrup.

Shape suffixes: N candidate tokens, W wordings, P query width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from memgraft.cues import AT_ONCE, NEVER, Cues
from memgraft.precision import in_own_precision
from memgraft.world import queries_of, world_of

if TYPE_CHECKING:
    from memgraft.encoding import TokenBatch
    from memgraft.grafted import GraftedModel

FEWEST_WORDINGS = 3  # below it, what recurs can't be told from what happens to be there; so it is with questions and statements for names
MOST_WORDINGS = 8  # that are looked at
MOST_CUES = 6  # a fact
COMPARABLE = 0.5  # a cue stands out at least this much as far as the best one of its fact, but for the second best, which
BARELY = 0.05  # only has to stand out at all: "Washington" does not by much, and "Washington" before "Park" does
MISSES = 4  # a token recurs that is in all wordings but one of so many: a sequence's first token, for one, is like no other
STRICTNESS = 0.6  # where between the world's nearest token (0) and its own wordings (1) a token stops to be a cue
CLOSELY = 0.95  # share of the likeness within its own wordings that a token needs where the world has tokens just as near,
FAINT = 0.5  # but below this cosine it must be nearer than these: so faint a cue was heard in one question of ten
NAMED = 0.65  # cosine from which a token recurs in another question: one next to cues that does in most of them is part of their name


class Found(NamedTuple):
    """The cues of facts with the other tokens of their names, and the token that each cue was in the wording it was found in.

    Of n facts those of fact i are numbered i, and those of its lower-case wordings n + i.
    """

    cues: Cues
    tokens: list[list[int]]  # fact by fact, in both cases


def find_cues(model: GraftedModel, batches: Sequence[TokenBatch]) -> Found | None:
    """The cues of each batch's fact; None where one has too few wordings, so that every text must read them.

    None without a background as well: what is rare in the world can't be told then.
    """
    candidates = [_candidates(batch) for batch in batches]
    if model.background is None or min(map(len, candidates)) < FEWEST_WORDINGS:
        return None
    world = world_of(model)
    lower = [[] if batch.lower is None else _candidates(batch.lower) for batch in batches]
    found, low = list[Found](), list[Found]()
    for wordings, others in zip(candidates, lower, strict=True):
        queries = queries_of(model, [each.ids for each in (*wordings, *others)])  # together: fewer passes
        found.append(_cues_of(queries[: len(wordings)], wordings, world.cased))
        if any(lower):
            # A fact without enough of them has the same cues twice, so that numbers fit. One token alone is mostly a common word in
            # lower case: "Hull", "The Ghost".
            own = _cues_of(queries[len(wordings) :], others, world.both) if len(others) >= FEWEST_WORDINGS else found[-1]
            low.append(own if len(own.tokens[0]) > 1 else found[-1])
    cues = Cues.joined((each.cues for each in (*found, *low)), model.config.query_dim)
    tokens = [each.tokens[0] for each in found]
    return Found(cues, [own + other.tokens[0] for own, other in zip(tokens, low, strict=True)] if low else tokens)


class _Asked(NamedTuple):
    """A wording, up to its answer."""

    ids: list[int]
    asking: Tensor  # (T - 1,) bool: which tokens may be cues, from the second one on
    source: int  # the question or statement that it is made from


def _candidates(batch: TokenBatch) -> list[_Asked]:
    """Some wordings. Those of their tokens that ask: a fact's own, in front of its answer and not part of it."""
    found: list[_Asked] = []
    writable = batch.attention_mask if batch.writable is None else batch.writable
    sources = range(len(batch)) if batch.sources is None else batch.sources.tolist()
    for ids, targets, own, source in zip(batch.input_ids, batch.targets, writable, sources, strict=True):
        last = int(targets.nonzero().max()) if targets.any() else 0
        asking = (own & ~targets)[1:last]
        if asking.any() and len(found) < MOST_WORDINGS:
            found.append(_Asked(ids[:last].tolist(), asking, source))
    return found


def _cues_of(queries: Sequence[Tensor], wordings: Sequence[_Asked], world: Tensor) -> Found:
    own = [of_wording[each.asking] for of_wording, each in zip(queries, wordings, strict=True)]
    candidates = torch.cat(own)  # (N, P)
    with in_own_precision(candidates):
        nearest = torch.stack([(candidates @ of_wording.T).amax(1) for of_wording in own], 1)  # (N, W)
        parts = world.split(max(1, AT_ONCE // len(candidates)))
        elsewhere = torch.stack([(candidates @ part.T).amax(1) for part in parts]).amax(0)
    recurring = nearest.sort(1).values[:, len(own) // MISSES]
    margin = recurring - elsewhere
    best = int(margin.argmax())
    # In the wording of the best one, all that stand out comparably: together they are what the fact is about.
    wording = torch.repeat_interleave(torch.tensor([len(of_wording) for of_wording in own]))
    ranked = [int(i) for i in margin.sort(descending=True, stable=True).indices if wording[i] == wording[best]][:MOST_CUES]
    fits = [i for rank, i in enumerate(ranked) if i == best or margin[i] >= (BARELY if rank == 1 else COMPARABLE * margin[best])]
    chosen = torch.tensor(sorted(fits))
    # A subject that is a common word stands out nowhere: it opens the memory where it stands as in its own wordings.
    common = torch.maximum(recurring * CLOSELY, elsewhere.clamp(max=FAINT))
    least = torch.where(margin > 0, elsewhere + STRICTNESS * margin, common)
    tokens = [torch.tensor(each.ids[1:])[each.asking] for each in wordings]
    keys, order = candidates[chosen], torch.arange(len(chosen))
    opening = least[chosen]
    if len({each.source for each in wordings}) >= FEWEST_WORDINGS:
        rest, order = _rest_of_name(keys, own, tokens, wordings, nearest)
        keys, opening = torch.cat([keys, rest]), torch.cat([opening, torch.full((len(rest),), NEVER)])
    cues = Cues(keys[order], opening[order], torch.zeros(len(keys), dtype=torch.int64))
    return Found(cues, [torch.cat(tokens)[chosen].tolist()])


def _rest_of_name(
    cues_AP: Tensor, own: Sequence[Tensor], tokens: Sequence[Tensor], wordings: Sequence[_Asked], nearest_NW: Tensor
) -> tuple[Tensor, Tensor]:
    """The tokens that make cues up to a name, as most questions and statements have it: those between and next to them that recur.

    Returns:
        their queries (R, P), and the order (A + R,) in which they and the cues, which come first, stand.

    Args:
        own: of each wording the queries (N, P) of its candidates.
        tokens: which tokens those are.
        nearest_NW: of all candidates the cosine with the nearest one of each wording.
    """
    sources = torch.tensor([each.source for each in wordings])
    by_source = torch.stack([nearest_NW[:, sources == source].amax(1) for source in sources.unique()], 1) >= NAMED
    recurs = (by_source.sum(1) - 1 > (by_source.shape[1] - 1) / 2).split([len(queries) for queries in own])  # itself is no other
    names: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    weights: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for queries, ids, each, again in zip(own, tokens, wordings, recurs, strict=True):
        place = each.asking.nonzero()[:, 0]
        with in_own_precision(queries):
            cues = (queries @ cues_AP.T).argmax(0)
        first, last = int(cues.min()), int(cues.max())
        while first > 0 and bool(again[first - 1]) and int(place[first]) - int(place[first - 1]) == 1:
            first -= 1
        while last + 1 < len(place) and bool(again[last + 1]) and int(place[last + 1]) - int(place[last]) == 1:
            last += 1
        name = torch.arange(first, last + 1)
        rest = name[again[name] & ~torch.isin(name, cues)]
        known = tuple(ids[first : last + 1].tolist())
        weights[known] += 1 / int((sources == each.source).sum())
        names.setdefault(known, (queries[rest], torch.cat([cues, rest]).argsort(stable=True)))
    return names[max(weights, key=lambda name: (round(weights[name], 6), -len(name)))]
