"""How states are whitened for addresses and cues: so that a subject is heard again however its question is put.

Whitening by all of the background's variance takes for meaning whatever tokens differ in, the place in the text among it, for which GPT-2
learns a vector each. Whitening by the variance within the occurrences of one token, behind the same token, takes that for noise: a
linear discriminant of tokens (Fisher 1936). Which of the two is needed can be told without labels: cues are found for questions about
made-up subjects, as they are put for teaching, and the same questions are put in other ways.

Shape suffixes: P background tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memgraft.calibration import aim
from memgraft.encoding import TokenBatch
from memgraft.finding import find_cues
from memgraft.grafted import GraftedModel
from memgraft.probes.language_model import longest_sequence
from memgraft.questions import AskedInForms, unknown_questions_asked, up_to_answers
from memgraft.world import World, queries_of

FEW = 0.1  # share of questions that may be missed with the usual whitening, for that to be taken as it is
BETTER = 0.5  # of its misses there must be less than this share with the other one, for that to be taken
NAMES, QUESTIONS = 2, 4  # subjects of each kind that are asked about, and what of each
FEWEST = 20  # questions that the model's context must hold: of fewer, one more or less decides


def kinds_to_whiten(model: GraftedModel, tokens_PD: Tensor, parts: Sequence[Sequence[int]], *, seed: int) -> Tensor | None:
    """For `calibrate`: of which kind each token is, where too few subjects are heard again with the usual whitening; None: as usual.

    Only the first memory layer is looked at, by which cues are heard. Leaves its projection as it was tried last.

    Args:
        tokens_PD: hidden states of the background's tokens, but the first of each document, as they enter the layer.
        parts: token ids of the documents.
    """
    memory, hidden = model.layer(0), tokens_PD.float().cpu()
    if not model.tokenizer.is_fast:  # which can't be taught facts
        return None
    asked = list(unknown_questions_asked(model.tokenizer, longest_sequence(model.base), NAMES, QUESTIONS))
    if len(asked) < FEWEST:
        return None
    aim(memory, hidden, torch.Generator().manual_seed(seed))
    usual = missed(model, asked, hidden)
    if usual <= FEW * len(asked):
        return None
    kinds = kinds_of(parts)
    aim(memory, hidden, torch.Generator().manual_seed(seed), kinds)
    return kinds if missed(model, asked, hidden) < BETTER * usual else None


def kinds_of(parts: Sequence[Sequence[int]]) -> Tensor:
    """(P,) int64: equal for tokens of these documents, but the first of each, that are the same one behind the same one."""
    pairs = torch.cat([torch.tensor([part[:-1], part[1:]], dtype=torch.int64).view(2, -1) for part in parts], 1)
    kinds: Tensor = torch.unique(pairs, dim=1, return_inverse=True)[1]
    return kinds


def missed(model: GraftedModel, asked: Sequence[AskedInForms], background_PD: Tensor) -> int:
    """How many questions don't open by their taught forms' cues in a plain form, in that form in which most don't.

    None where no cues can be found: every text reads such facts. What is rare is told from the background alone.
    """
    world = torch.cat([model.cue_queries(part.to(model.device)).cpu() for part in background_PD.split(4096)])
    model.world, kept = World(world, world), model.world
    try:
        found = find_cues(model, list(map(in_taught_forms, asked)))
    finally:
        model.world = kept
    if found is None:
        return 0
    plain = [ids for each in asked for ids in up_to_answers(each.forms)[each.taught :]]
    queries = iter(queries_of(model, plain))
    closed = list[list[bool]]()
    for number, each in enumerate(asked):
        own = found.cues.of_fact(number)
        closed.append([not bool(own.open(own.heard(next(queries)[None]))[0, -1]) for _ in range(each.taught, len(each.forms))])
    return max(map(sum, zip(*closed, strict=True)))


def in_taught_forms(asked: AskedInForms) -> TokenBatch:
    """The question in those forms alone in which facts are taught."""
    return replace(asked.forms, rounds=(0, asked.taught)).round(0)
