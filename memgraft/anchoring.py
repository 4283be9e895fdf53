"""Finding the anchors of facts, and fitting the layer that reads them, from hidden states alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memgraft.anchors import BEGINS, KEY_DIM, Anchors
from memgraft.answer_layer import AnswerLayer, calibrate
from memgraft.encoding import TokenBatch, encode
from memgraft.errors import GraftError, TeachingError
from memgraft.examples import Fact
from memgraft.grafted import GraftedModel
from memgraft.probes.language_model import context_length
from memgraft.wordings import Wording, chat_renderer, load_pool, teach_wordings

ALIKE = 0.48  # cosine with the mean from which a token is one in front of a fact's answer
SAME = 0.6  # and from which it is a certain token within the answer
WAYS = 4  # in which each common question is asked as facts are, to fit the layer; beside these:
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
            least.append(SAME if answer else ALIKE)
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

    GraftError where the model's context holds none of them.
    """
    from memgraft.grafting import background_states

    assert model.answers is not None
    assert model.config.answer_layer is not None
    batches = list(common_questions_asked(model.tokenizer, context_length(model.base) or 2**20))
    if not batches:
        raise GraftError(
            "answer_layer: the model's context is too short for questions with their answers; graft without (answer_layer None)"
        )
    sequences = [ids[mask].tolist() for batch in batches for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    states = iter(background_states(model, model.config.answer_layer, sequences))
    begins: list[Tensor] = []
    questions: list[int] = []
    within: list[Tensor] = []
    for number, batch in enumerate(batches):
        for _, so_far in answer_tokens(batch.input_ids, batch.targets):
            hidden = next(states).float()
            begins.append(hidden[next(place for place, tokens in so_far.items() if not tokens)])
            questions.append(number)
            within.append(hidden[1:])
    calibrate(model.answers, torch.stack(begins), torch.tensor(questions), torch.cat(within), seed=seed)


def common_questions_asked(tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[TokenBatch]:
    """The package's common questions, each in several forms; those of which one is longer than `max_length` tokens are left out."""
    pool, chat = load_pool("contexts"), chat_renderer(tokenizer)
    for number, pair in enumerate(pool, 1):
        fact = Fact(line=number, question=pair.question, answers=(pair.answer,))
        texts = [form.replace("{q}", pair.question).replace("{a}", pair.answer) for form in PLAINLY]
        plain = [Wording(text, ((len(text) - len(pair.answer), len(text)),)) for text in texts]
        wordings = [*teach_wordings(fact, count=WAYS, seed=0, contexts=pool, chat=chat), *plain]
        with suppress(TeachingError):  # too long
            yield encode(wordings, tokenizer, name=fact.name, max_length=max_length)
