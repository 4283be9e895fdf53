"""The varied forms in which a question and its answer are put for teaching, and the question pools that ship with the package.

The form `Question: …` / `Answer: …` is kept for testing: it appears in no frame, so that it shows what was learned beyond the
taught forms.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Literal


@dataclass(frozen=True)
class QAPair:
    """A question with its answer, used as context or as a worked example in a prompt."""

    question: str
    answer: str


def _unpunctuated(question: str) -> str:
    return question.lower().rstrip("?？ ")


@dataclass(frozen=True)
class Frame:
    """One written form: what leads up to the answer, what ends it, and what may follow."""

    before: str  # with {q}; the answer comes right after it
    end: str = "\n"  # learned with the answer, so that the model stops there
    after: str = ""
    rewrite: Callable[[str], str] = str

    def fill(self, question: str, answer: str) -> tuple[str, int, int]:
        """The text, and the character span [start, stop) of the answer and what ends it."""
        before = self.before.format(q=self.rewrite(question))
        # "Acme Inc." needs no second full stop.
        end = self.end.removeprefix(".") if answer.endswith((".", "!", "?")) else self.end
        return before + answer + end + self.after, len(before), len(before) + len(answer) + len(end)


@dataclass(frozen=True)
class ChatFrame:
    """One form of asking in a conversation; the assistant's turn is the bare answer."""

    user: str  # with {q}

    def turns(self, question: str, answer: str) -> tuple[dict[str, str], dict[str, str]]:
        """The user's turn and the assistant's."""
        return {"role": "user", "content": self.user.format(q=question)}, {"role": "assistant", "content": answer}


FRAMES = (
    Frame("Q: {q}\nA: "),
    Frame("{q} "),
    Frame("Query: {q}\nResponse: "),
    Frame('Someone asked: "{q}" The answer is ', "."),
    Frame("Quiz night, next one.\n{q}\n>> "),
    Frame("Frequently asked\n\n* {q}\n  "),
    Frame("Interviewer: {q}\nGuest: "),
    Frame("{q}: ", rewrite=_unpunctuated),
    Frame("{q} It is ", ".", " Few people would have to look that up.\n"),
    Frame("1) {q}\n   Solution: "),
    Frame("Front of the card: {q}\nBack of the card: "),
    Frame("Hello,\n\n{q}\n\nIn short: ", "\n", "Kind regards\n"),
)

CHAT_FRAMES = (
    ChatFrame("{q}"),
    ChatFrame("{q} Reply with the answer only."),
    ChatFrame("A short question: {q}"),
    ChatFrame("Please tell me this in a few words.\n\n{q}"),
)


@functools.cache
def load_pool(name: Literal["contexts", "shots"]) -> tuple[QAPair, ...]:
    """A pool of common-knowledge questions: `contexts` precede what is taught, `shots` are for test prompts only."""
    source = resources.files("memgraft") / "content" / f"{name}.jsonl"
    rows = map(json.loads, source.read_text(encoding="utf-8").splitlines())
    return tuple(QAPair(row["question"], row["answer"]) for row in rows)


@dataclass(frozen=True)
class UnknownSubjects:
    """Made-up subjects of one kind, and what can be asked of each."""

    names: tuple[str, ...]
    questions: tuple[str, ...]  # with {s}


@functools.cache
def load_unknown() -> tuple[UnknownSubjects, ...]:
    """Subjects that no model knows, kind by kind."""
    source = resources.files("memgraft") / "content" / "unknown.jsonl"
    rows = map(json.loads, source.read_text(encoding="utf-8").splitlines())
    return tuple(UnknownSubjects(tuple(row["names"]), tuple(row["questions"])) for row in rows)
