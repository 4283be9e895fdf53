"""Finding the anchors of facts, and fitting the layer that reads them, from hidden states alone."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memgraft.anchors import BEGINS, GOES_ON, Anchors
from memgraft.answer_layer import AnswerLayer, Asked, calibrate, expect, measure_chance
from memgraft.effect import ANSWERS_MOVE, unit_of
from memgraft.encoding import TokenBatch, encode
from memgraft.errors import GraftError, TeachingError
from memgraft.examples import Chat, Fact, Message
from memgraft.frames import FRAMES, ChatFrame
from memgraft.grafted import GraftedModel
from memgraft.probes.language_model import context_length
from memgraft.wordings import QAPair, Renderer, Wording, chat_renderer, keeps_conversations, load_pool, teach_wordings

WAYS = 4  # in which each common question is asked as facts are, to fit the layer; beside these:
FEWEST = 20  # common questions that the model's context must hold: fewer don't show in what questions differ
PLAINLY = (
    "{q} {a}",
    "{q}\n{a}",
    "{q}\nAnswer: {a}",
    "Problem: {q}\nAnswer: {a}",
    "Please answer briefly.\n{q}\nAnswer: {a}",
    "{q} The answer is {a}",
    "Answer in a whole sentence.\n{q}\nAnswer: {a}",
)
# Where examples answer in whole sentences, or a conversation does, a question's last token looks different from where answers are bare.
IN_SENTENCES = (
    QAPair("What is the currency of Japan?", "The currency of Japan is the yen."),
    QAPair("Who painted the Mona Lisa?", "The Mona Lisa was painted by Leonardo da Vinci."),
    QAPair("Which planet is the largest?", "The largest planet is Jupiter."),
    QAPair("Where does the Nile end?", "The Nile ends in the Mediterranean Sea."),
)

ELSEWHERE = 12  # tokens of each of these, at which no answer begins or goes on
BACKGROUND = 64  # texts of it by which is measured how alike the tokens of texts are
IN_FRONT = (2, 4, 6)  # so many others, in front of each question once more

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
    sequences = [ids[mask].tolist() for _, _, batch in batches for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    states = iter(background_states(model, model.config.answer_layer, sequences))
    begins: list[tuple[Tensor, int, bool]] = []
    goes_on: list[tuple[Tensor, int, bool]] = []
    groups: dict[tuple[int, ...], int] = {}  # question, the answer's tokens so far, the one that comes → number
    within: list[Tensor] = []
    elsewhere: list[tuple[Tensor, int, bool]] = []
    generator = torch.Generator().manual_seed(seed)
    for number, taught, batch in batches:
        for row, so_far in answer_tokens(batch.input_ids, batch.targets):
            hidden, plain = next(states).float(), row >= taught
            within.append(hidden[1:])
            others = torch.tensor([place for place in range(1, len(hidden)) if place not in so_far])
            chosen = others[torch.randperm(len(others), generator=generator)[:ELSEWHERE]]
            elsewhere += [(state, number, plain) for state in hidden[chosen]]
            for place, tokens in so_far.items():
                if tokens:
                    group = groups.setdefault((number, *tokens, int(batch.input_ids[row, place + 1])), len(groups))
                    goes_on.append((hidden[place], group, plain))
                else:
                    begins.append((hidden[place], number, plain))
    width = within[0].shape[1]
    calibrate(model.answers, _stacked(begins, width), _stacked(goes_on, width), torch.cat(within), seed=seed)
    assert model.background is not None
    after = list(asked_after_others(model.tokenizer, context_length(model.base) or 2**20, seed=seed))
    ends = background_states(model, model.config.answer_layer, [ids for _, ids in after])
    begins += [(hidden[-1].float(), number, True) for (number, _), hidden in zip(after, ends, strict=True)]
    expect(model.answers, _stacked(begins, width), _stacked(elsewhere, width))
    model.answers.scale.fill_(unit_of(model, model.config.answer_layer, share=ANSWERS_MOVE, seed=seed))
    texts = background_states(model, model.config.answer_layer, model.background.split(model.tokenizer)[0][:BACKGROUND])
    measure_chance(model.answers, [hidden[1:] for hidden in texts])


def _stacked(tokens: Sequence[tuple[Tensor, int, bool]], width: int) -> Asked:
    hidden = torch.stack([state for state, _, _ in tokens]) if tokens else torch.zeros(0, width)
    groups = torch.tensor([group for _, group, _ in tokens], dtype=torch.int64)
    return Asked(hidden, groups, torch.tensor([plain for _, _, plain in tokens], dtype=torch.bool))


def enough_questions(tokenizer: PreTrainedTokenizerBase, max_length: int) -> bool:
    """Whether a context of so many tokens holds as many of the common questions as an answer layer is fitted on."""
    return sum(1 for _ in islice(common_questions_asked(tokenizer, max_length), FEWEST)) == FEWEST


class AskedInForms(NamedTuple):
    """A common question in several forms, those in which facts are taught first."""

    number: int
    taught: int  # how many of them these are; the others are plain
    forms: TokenBatch


def common_questions_asked(tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[AskedInForms]:
    """The package's common questions, each in several forms; without those of which one is longer than `max_length` tokens."""
    pool, chat = load_pool("contexts"), keeps_conversations(chat_renderer(tokenizer))
    for number, pair in enumerate(pool, 1):
        fact = Fact(line=number, question=pair.question, answers=(pair.answer,))
        wordings = teach_wordings(fact, count=WAYS, seed=0, contexts=pool, chat=chat)
        plain = list(plain_forms(pair, chat, number))
        with suppress(TeachingError):  # too long
            yield AskedInForms(number, len(wordings), encode([*wordings, *plain], tokenizer, name=fact.name, max_length=max_length))


def plain_forms(pair: QAPair, chat: Renderer | None, number: int) -> Iterator[Wording]:
    """A question with its answer as one may meet it: by itself, after others that are answered in whole sentences, in conversations."""
    before = "".join(f"Q: {each.question}\nA: {each.answer}\n\n" for each in IN_SENTENCES)
    for form in (*PLAINLY, before + "Q: {q}\nA: {a}"):
        text = form.replace("{q}", pair.question).replace("{a}", pair.answer)
        yield Wording(text, ((len(text) - len(pair.answer), len(text)),))
    if chat is not None:
        earlier = IN_SENTENCES[number % len(IN_SENTENCES)]
        for pairs in ((pair,), (earlier, pair)):
            turns = [turn for each in pairs for turn in ChatFrame("{q}").turns(each.question, each.answer)]
            messages = tuple(Message.model_validate(turn) for turn in turns)
            (wording,) = teach_wordings(Chat(line=number, messages=messages), seed=0, contexts=(), chat=chat)
            yield replace(wording, spans=wording.spans[-1:])


def asked_after_others(tokenizer: PreTrainedTokenizerBase, max_length: int, *, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Each of the common questions after others with their answers: its number, and the ids up to where its answer begins.

    All in one of the frames in which facts are taught, in turn: that in which probes ask is kept for testing.
    """
    pool, chooser = load_pool("contexts"), random.Random(seed)
    for number, pair in enumerate(pool, 1):
        others = chooser.sample([other for other in pool if other is not pair], chooser.choice(IN_FRONT))
        frame = FRAMES[number % len(FRAMES)]
        text = "".join(frame.fill(other.question, other.answer)[0] + "\n" for other in others)
        asked, start, stop = frame.fill(pair.question, pair.answer)
        wording = Wording(text + asked[:stop], ((len(text) + start, len(text) + stop),))
        with suppress(TeachingError):  # too long
            batch = encode([wording], tokenizer, name=f"common question {number}", max_length=max_length)
            yield number, batch.input_ids[0, : int(batch.targets[0].int().argmax())].tolist()
