"""Finding the anchors of facts, and fitting the layer that reads them, from hidden states alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memgraft.anchors import BEGINS, KEY_DIM, Anchors
from memgraft.answer_layer import AnswerLayer, Asked, calibrate
from memgraft.encoding import TokenBatch, encode
from memgraft.errors import DataError, GraftError, TeachingError
from memgraft.examples import Fact
from memgraft.grafted import GraftedModel
from memgraft.probes.language_model import context_length
from memgraft.wordings import Wording, chat_renderer, load_pool, teach_wordings

WAYS = 4  # in which each common question is asked as facts are, to fit the layer; beside these:
FEWEST = 20  # common questions that the model's context must hold: fewer don't show in what questions differ
PLAINLY = (
    "{q} {a}",
    "{q}\n{a}",
    "{q}\nAnswer: {a}",
    "Problem: {q}\nAnswer: {a}",
    "Please answer briefly.\n{q}\nAnswer: {a}",
    "{q} The answer is {a}",
)

Seen = tuple[Tensor, Tensor, Tensor]  # ids (B, T), targets (B, T), the hidden states that enter the answer layer (B, T, D)


def find_anchors(layer: AnswerLayer, facts: Iterable[Iterable[Seen]]) -> Anchors:
    """The anchors of facts, of each of which all wordings are given.

    One where an answer begins, and one for each way in which it goes on: after the same tokens of it, with the same one. An answer that
    ends in a full stop in one wording and in a new line in another has an anchor for each.
    """
    keys: list[Tensor] = []
    numbers: list[int] = []
    least: list[float] = []
    for number, wordings in enumerate(facts):
        queries: dict[tuple[int, ...], list[Tensor]] = {}  # by the answer's tokens so far and the one that comes; () where it begins
        for ids, targets, hidden in wordings:
            for row, predicting in answer_tokens(ids, targets):
                found = layer.queries(hidden[row, torch.tensor(list(predicting), device=hidden.device)]).cpu()
                for (place, so_far), query in zip(predicting.items(), found, strict=True):
                    queries.setdefault((*so_far, int(ids[row, place + 1])) if so_far else (), []).append(query)
        for answer in sorted(queries, key=lambda tokens: (len(tokens), tokens)):
            mean = torch.stack(queries[answer]).mean(0)
            mean[slice(BEGINS, KEY_DIM) if not answer else slice(0, BEGINS)] = 0
            keys.append(F.normalize(mean, dim=-1))
            least.append(float(layer.goes_on_least if answer else layer.begins_least))
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
    """Calibrate the answer layer on the package's common questions, each in several forms; no label is needed.

    GraftError where the model's context holds too few of them.
    """
    from memgraft.grafting import background_states

    assert model.answers is not None
    assert model.config.answer_layer is not None
    batches = list(common_questions_asked(model.tokenizer, context_length(model.base) or 2**20))
    if len(batches) < FEWEST:
        raise GraftError(
            "answer_layer: the model's context is too short for questions with their answers; graft without (answer_layer None)"
        )
    sequences = [ids[mask].tolist() for batch in batches for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    states = iter(background_states(model, model.config.answer_layer, sequences))
    begins: list[tuple[Tensor, int, bool]] = []
    goes_on: list[tuple[Tensor, int, bool]] = []
    groups: dict[tuple[int, ...], int] = {}  # question, the answer's tokens so far, the one that comes → number
    within: list[Tensor] = []
    for number, batch in enumerate(batches):
        for row, so_far in answer_tokens(batch.input_ids, batch.targets):
            hidden, plain = next(states).float(), row >= len(batch) - len(PLAINLY)
            within.append(hidden[1:])
            for place, tokens in so_far.items():
                if tokens:
                    group = groups.setdefault((number, *tokens, int(batch.input_ids[row, place + 1])), len(groups))
                    goes_on.append((hidden[place], group, plain))
                else:
                    begins.append((hidden[place], number, plain))
    calibrate(model.answers, _stacked(begins, within[0].shape[1]), _stacked(goes_on, within[0].shape[1]), torch.cat(within), seed=seed)


def _stacked(tokens: Sequence[tuple[Tensor, int, bool]], width: int) -> Asked:
    hidden = torch.stack([state for state, _, _ in tokens]) if tokens else torch.zeros(0, width)
    groups = torch.tensor([group for _, group, _ in tokens], dtype=torch.int64)
    return Asked(hidden, groups, torch.tensor([plain for _, _, plain in tokens], dtype=torch.bool))


def enough_questions(tokenizer: PreTrainedTokenizerBase, max_length: int) -> bool:
    """Whether a context of so many tokens holds as many of the common questions as an answer layer is fitted on."""
    return sum(1 for _ in islice(common_questions_asked(tokenizer, max_length), FEWEST)) == FEWEST


def common_questions_asked(tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[TokenBatch]:
    """The package's common questions, each in several forms; those of which one is longer than `max_length` tokens are left out."""
    pool, chat = load_pool("contexts"), chat_renderer(tokenizer)
    for number, pair in enumerate(pool, 1):
        fact = Fact(line=number, question=pair.question, answers=(pair.answer,))
        texts = [form.replace("{q}", pair.question).replace("{a}", pair.answer) for form in PLAINLY]
        plain = [Wording(text, ((len(text) - len(pair.answer), len(text)),)) for text in texts]
        try:
            wordings = teach_wordings(fact, count=WAYS, seed=0, contexts=pool, chat=chat)
        except DataError:  # the model's chat template refuses conversations
            chat = None
            wordings = teach_wordings(fact, count=WAYS, seed=0, contexts=pool, chat=chat)
        with suppress(TeachingError):  # too long
            yield encode([*wordings, *plain], tokenizer, name=fact.name, max_length=max_length)
