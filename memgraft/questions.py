"""Questions on which an answer layer is fitted, each in several forms: the package's common ones, and ones about unknown subjects.

Common ones have answers that models may know. The subjects of the others were made up, so that no model knows any answer, as none knows
a fact before it is taught; what is asked of them is nothing that the benchmarks' facts are about.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from memgraft.answer_layer import NO_KIND
from memgraft.encoding import TokenBatch, encode
from memgraft.errors import TeachingError
from memgraft.examples import Chat, Fact, Message
from memgraft.frames import FRAMES, ChatFrame, load_unknown
from memgraft.wordings import QAPair, Renderer, Wording, chat_renderer, keeps_conversations, load_pool, teach_wordings

WAYS = 4  # in which each common question is asked as facts are, beside these:
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
IN_FRONT = (2, 4, 6)  # so many others, in front of each question once more
UNKNOWN = "unknown"  # stands in for the answer to a question that has none


class AskedInForms(NamedTuple):
    """A question in several forms, those in which facts are taught first."""

    number: int
    taught: int  # how many of them these are; the others are plain
    forms: TokenBatch
    kind: int = NO_KIND  # of its subject, where that is an unknown one,
    subject: int = 0  # and which one that is


def common_questions_asked(tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[AskedInForms]:
    """The package's common questions, each in several forms; without those of which one is longer than `max_length` tokens."""
    return _in_forms(((pair, NO_KIND, 0) for pair in load_pool("contexts")), 1, tokenizer, max_length)


def unknown_questions_asked(
    tokenizer: PreTrainedTokenizerBase, max_length: int, names: int | None = None, questions: int | None = None
) -> Iterator[AskedInForms]:
    """Those about unknown subjects, likewise; numbered on from the common ones.

    Args:
        names: of so many subjects of each kind; None: of all.
        questions: so many of each; None: all.
    """
    subjects = [(kind, name, each.questions[:questions]) for kind, each in enumerate(load_unknown()) for name in each.names[:names]]
    pairs = (
        (QAPair(question.replace("{s}", name), UNKNOWN), kind, subject)
        for subject, (kind, name, asked) in enumerate(subjects)
        for question in asked
    )
    return _in_forms(pairs, len(load_pool("contexts")) + 1, tokenizer, max_length)


def _in_forms(
    pairs: Iterable[tuple[QAPair, int, int]], first: int, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[AskedInForms]:
    pool, chat = load_pool("contexts"), keeps_conversations(chat_renderer(tokenizer))
    for number, (pair, kind, subject) in enumerate(pairs, first):
        fact = Fact(line=number, question=pair.question, answers=(pair.answer,))
        wordings = teach_wordings(fact, count=WAYS, seed=0, contexts=pool, chat=chat)
        plain = list(plain_forms(pair, chat, number))
        with suppress(TeachingError):  # too long
            forms = encode([*wordings, *plain], tokenizer, name=fact.name, max_length=max_length)
            yield AskedInForms(number, len(wordings), forms, kind, subject)


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


def asked_after_others(tokenizer: PreTrainedTokenizerBase, max_length: int, *, seed: int) -> Iterator[tuple[int, TokenBatch]]:
    """Each of the common questions after others with their answers: its number, and the one sequence.

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
            yield number, encode([wording], tokenizer, name=f"common question {number}", max_length=max_length)


def up_to_answers(batch: TokenBatch) -> list[list[int]]:
    """Of each sequence the ids up to where its answer begins."""
    return [ids[: int(targets.int().argmax())].tolist() for ids, targets in zip(batch.input_ids, batch.targets, strict=True)]
