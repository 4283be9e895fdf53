"""Finding the anchors of facts, and fitting the layer that reads them, from hidden states alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memgraft.anchors import BEGINS, GOES_ON, Anchors
from memgraft.answer_layer import NO_KIND, AnswerLayer, Asked, calibrate, expect, measure_chance
from memgraft.effect import ANSWERS_MOVE, unit_of
from memgraft.encoding import TokenBatch
from memgraft.errors import GraftError
from memgraft.grafted import GraftedModel
from memgraft.probes.language_model import longest_sequence
from memgraft.questions import asked_after_others, common_questions_asked, unknown_questions_asked, up_to_answers
from memgraft.states import background_states

FEWEST = 20  # common questions that the model's context must hold: fewer don't show in what questions differ
ELSEWHERE = 12  # tokens of each of these, at which no answer begins or goes on
BACKGROUND = 64  # texts of it by which is measured how alike the tokens of texts are

Seen = tuple[Tensor, Tensor, Tensor]  # ids (B, T), targets (B, T), the hidden states that enter the answer layer (B, T, D)


def find_anchors(layer: AnswerLayer, facts: Iterable[Iterable[Seen]]) -> Anchors:
    """The anchors of facts, of each of which all wordings are given.

    One where an answer is expected, behind a question; one for it within statements, where it is not, for each token that it begins with;
    and one for each way in which it goes on: after the same tokens of it, with the same one. An answer that ends in a full stop in one
    wording and in a new line in another has an anchor for each.
    """
    keys: list[Tensor] = []
    numbers: list[int] = []
    least: list[float] = []
    for number, wordings in enumerate(facts):
        queries: dict[tuple[int, ...], list[Tensor]] = {}  # by the answer's tokens so far and the one that comes; () where it is expected
        for ids, targets, hidden in wordings:
            for row, predicting in answer_tokens(ids, targets):
                states = hidden[row, torch.tensor(list(predicting), device=hidden.device)]
                found, expected = layer.queries(states).cpu(), layer.expects(states).tolist()
                for (place, so_far), query, asked in zip(predicting.items(), found, expected, strict=True):
                    key = () if asked and not so_far else (*so_far, int(ids[row, place + 1]))
                    queries.setdefault(key, []).append(query)
        for answer in sorted(queries, key=lambda tokens: (len(tokens), tokens)):
            begins, goes_on = torch.stack(queries[answer]).split([BEGINS, GOES_ON], dim=-1)
            match len(answer):
                case 0:
                    goes_on, closeness = torch.zeros_like(goes_on), layer.begins_least(begins)
                case 1:
                    closeness = float(layer.amid_least)
                case _:
                    begins, closeness = torch.zeros_like(begins), float(layer.goes_on_least)
            halves = (F.normalize(part.mean(0), dim=-1) for part in (begins, goes_on))
            keys.append(F.normalize(torch.cat(list(halves)), dim=-1))
            least.append(closeness)
            numbers.append(number)
    return Anchors(torch.stack(keys), torch.tensor(least), torch.tensor(numbers))


def answer_tokens(ids: Tensor, targets: Tensor) -> Iterator[tuple[int, dict[int, tuple[int, ...]]]]:
    """Of each sequence (B, T): its number, and for each token that predicts one of an answer that answer's tokens so far."""
    for row, (tokens, marks) in enumerate(zip(ids.tolist(), targets.tolist(), strict=True)):
        so_far: dict[int, tuple[int, ...]] = {}
        for place in range(len(tokens) - 1):
            if marks[place + 1]:
                so_far[place] = (*so_far[place - 1], tokens[place]) if marks[place] and place - 1 in so_far else ()
        if so_far:
            yield row, so_far


def fit_answers(model: GraftedModel, *, seed: int) -> None:
    """Calibrate the answer layer on the package's common questions and those about unknown subjects, each in several forms.

    No label is needed. GraftError where the model's context holds too few common ones.
    """
    assert model.answers is not None
    assert model.config.answer_layer is not None
    longest = longest_sequence(model.base)
    asked = list(common_questions_asked(model.tokenizer, longest))
    if len(asked) < FEWEST:
        raise GraftError(
            "answer_layer: the model's context is too short for questions with their answers; graft without (answer_layer None)"
        )
    sequences = [ids[mask].tolist() for each in asked for ids, mask in zip(each.forms.input_ids, each.forms.attention_mask, strict=True)]
    states = iter(background_states(model, model.config.answer_layer, sequences))
    begins: list[Token] = []
    goes_on: list[Token] = []
    groups: dict[tuple[int, ...], int] = {}  # question, the answer's tokens so far, the one that comes → number
    within: list[Tensor] = []
    elsewhere: list[Token] = []
    generator = torch.Generator().manual_seed(seed)
    for each in asked:
        ids = each.forms.input_ids
        for row, so_far in answer_tokens(ids, each.forms.targets):
            hidden, plain = next(states).float(), row >= each.taught
            within.append(hidden[1:])
            others = torch.tensor([place for place in range(1, len(hidden)) if place not in so_far])
            chosen = others[torch.randperm(len(others), generator=generator)[:ELSEWHERE]]
            elsewhere += [Token(state, each.number, plain) for state in hidden[chosen]]
            for place, tokens in so_far.items():
                if tokens:
                    group = groups.setdefault((each.number, *tokens, int(ids[row, place + 1])), len(groups))
                    goes_on.append(Token(hidden[place], group, plain))
                else:
                    begins.append(Token(hidden[place], each.number, plain))
    width = within[0].shape[1]
    unknown = _unknown_begins(model, longest)
    after = list(asked_after_others(model.tokenizer, longest, seed=seed))
    taught = [token for token in goes_on if not token.plain]
    sets = [_stacked(tokens, width) for tokens in (goes_on, [*taught, *_goes_on_after(model, after, groups)])]
    calibrate(model.answers, _stacked([*begins, *unknown], width), sets, torch.cat(within), seed=seed)
    assert model.background is not None
    ends = background_states(model, model.config.answer_layer, [up_to_answers(batch)[0] for _, batch in after])
    begins += [Token(hidden[-1].float(), number, True) for (number, _), hidden in zip(after, ends, strict=True)]
    expect(model.answers, _stacked(begins, width), _stacked(elsewhere, width))
    model.answers.scale.fill_(unit_of(model, model.config.answer_layer, share=ANSWERS_MOVE, seed=seed))
    texts = background_states(model, model.config.answer_layer, model.background.split(model.tokenizer)[0][:BACKGROUND])
    measure_chance(model.answers, [hidden[1:] for hidden in texts])


def _goes_on_after(model: GraftedModel, asked: Sequence[tuple[int, TokenBatch]], groups: Mapping[tuple[int, ...], int]) -> list[Token]:
    """The tokens within the answers to questions after others, of those groups that there are."""
    assert model.config.answer_layer is not None
    found: list[Token] = []
    states = background_states(model, model.config.answer_layer, [batch.input_ids[0].tolist() for _, batch in asked])
    for (number, batch), hidden in zip(asked, states, strict=True):
        for _, so_far in answer_tokens(batch.input_ids, batch.targets):
            for place, tokens in so_far.items():
                group = (number, *tokens, int(batch.input_ids[0, place + 1]))
                if tokens and group in groups:
                    found.append(Token(hidden[place].float(), groups[group], True))
    return found


def _unknown_begins(model: GraftedModel, longest: int) -> list[Token]:
    """The tokens in front of the answers to questions about unknown subjects."""
    assert model.config.answer_layer is not None
    found = list(unknown_questions_asked(model.tokenizer, longest))
    states = iter(background_states(model, model.config.answer_layer, [ids for each in found for ids in up_to_answers(each.forms)]))
    return [
        Token(next(states)[-1].float(), each.number, row >= each.taught, each.kind)
        for each in found
        for row in range(len(each.forms.input_ids))
    ]


class Token(NamedTuple):
    """One of those that are stacked as `Asked`."""

    state: Tensor  # (D,)
    group: int
    plain: bool
    kind: int = NO_KIND


def _stacked(tokens: Sequence[Token], width: int) -> Asked:
    return Asked(
        torch.stack([token.state for token in tokens]) if tokens else torch.zeros(0, width),
        torch.tensor([token.group for token in tokens], dtype=torch.int64),
        torch.tensor([token.plain for token in tokens], dtype=torch.bool),
        torch.tensor([token.kind for token in tokens], dtype=torch.int64),
    )


def enough_questions(tokenizer: PreTrainedTokenizerBase, max_length: int) -> bool:
    """Whether a context of so many tokens holds as many of the common questions as an answer layer is fitted on."""
    return sum(1 for _ in islice(common_questions_asked(tokenizer, max_length), FEWEST)) == FEWEST
