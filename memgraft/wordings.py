"""From examples to training strings: every wording to teach, in varied frames and contexts, with the characters to learn.

A fact is taught in many forms, about half of them after one to three unrelated questions with their answers: without such
varied context the taught wordings and a later question read different slots, and what was learned does not carry over.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from memgraft.errors import DataError
from memgraft.examples import Chat, Completion, Example, Fact, Text, normalise
from memgraft.frames import CHAT_FRAMES, FRAMES, ChatFrame, Frame, QAPair, load_pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DEFAULT_COUNT", "Messages", "QAPair", "Renderer", "Wording", "chat_renderer", "load_pool", "teach_wordings"]

DEFAULT_COUNT = 12

Messages = Sequence[Mapping[str, str]]  # {"role": …, "content": …}
Renderer = Callable[[Messages], str]

_MAX_CONTEXTS = 3
# Letters of scripts that set no spaces between words, or none between a word and its particles: Thai to Khmer, CJK, kana, Hangul.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u31a0-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)
_STAND_IN = "\ue0f0memgraft\ue0f1"  # private-use characters, which no template and hardly any text holds
# Some templates write today's date: with a fixed one, Wednesday 1 January 2025, a lesson has the same bytes on every day.
_DATE = {"%Y": "2025", "%y": "25", "%m": "01", "%B": "January", "%b": "Jan", "%d": "01", "%-d": "1", "%A": "Wednesday", "%a": "Wed"}
_FIXED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('{directive}', '{value}')" for directive, value in _DATE.items())
    + " }}{% endmacro +%}"  # + leaves a line end that follows in place
)


@dataclass(frozen=True)
class Wording:
    """One training string and the characters in it that are to be learned."""

    text: str
    spans: tuple[tuple[int, int], ...]  # [start, stop) in characters, in order, not overlapping
    special_tokens: bool = True  # whether the tokenizer adds its own; chat templates have written theirs already
    own: int = 0  # the character where the example itself starts; contexts lie before it
    fields: str = field(default="", compare=False)  # of the example that it was made of, for messages
    source: int = field(default=0, compare=False)  # which of a fact's statements and questions it is made from

    def __post_init__(self) -> None:
        edges = [edge for span in self.spans for edge in span]
        if (
            edges != sorted(edges)
            or any(start == stop for start, stop in self.spans)
            or (edges and not 0 <= edges[0] <= edges[-1] <= len(self.text))
        ):
            raise ValueError(f"spans must be ordered, apart, not empty and within {len(self.text)} characters, got {self.spans}")

    def lower(self) -> Wording:
        """The same in lower case, character by character; those that would become several ("İ") stay."""
        return replace(self, text="".join(low if len(low := each.lower()) == 1 else each for each in self.text))


def teach_wordings(
    example: Example,
    *,
    count: int | None = None,
    seed: int,
    contexts: Sequence[QAPair],
    chat: Renderer | None,
    eos: str = "",
    lower_case: float = 0.0,
) -> tuple[Wording, ...]:
    """The wordings that teach an example, the same for the same seed and content (line and id don't matter).

    A fact gives `count` of them (12 by default): its statements as plain text and each of its questions at least once, even
    where that makes more; never a held-out wording, nor any two alike, which can make fewer. Its first answer is the one taught.
    Other examples give one each. `contexts` is the pool of unrelated questions, `chat` renders conversations (see
    `chat_renderer`; None: the model has no chat format), `eos` ends a completion. `lower_case` is the share of a fact's questions
    that are asked in lower case, with the answer as it stands.

    Raises DataError for messages where there is no chat format, or one that does not keep the turns as they are written.
    """
    match example:
        case Fact():
            return _fact_wordings(example, DEFAULT_COUNT if count is None else count, seed, contexts, chat, lower_case)
        case Text():
            return (Wording(example.text, ((0, len(example.text)),), fields="text"),)
        case Completion():
            text = example.prompt + example.completion + eos
            return (Wording(text, ((len(example.prompt), len(text)),), fields="prompt/completion"),)
        case Chat():
            try:
                return (_conversation(example, chat),)
            except DataError as error:
                raise DataError(f"messages: {error}") from error


def chat_renderer(tokenizer: PreTrainedTokenizerBase) -> Renderer | None:
    """The tokenizer's chat template as a function, None where it has no default one. Templates that write the date get a fixed one.

    The function raises DataError for a conversation that the template refuses.
    """
    from jinja2 import TemplateError  # comes with torch; only chat formats need it

    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        return None
    if "strftime_now" in template:
        template = _FIXED_CLOCK + template

    def render(messages: Messages) -> str:
        try:
            return str(tokenizer.apply_chat_template([dict(turn) for turn in messages], chat_template=template, tokenize=False))
        except TemplateError as error:
            raise DataError(f"the model's chat template refuses the conversation: {error}") from error

    return render


def keeps_conversations(chat: Renderer | None) -> Renderer | None:
    """The same, but None for a chat format that refuses or rewrites a plain conversation: facts are taught without it then."""
    said = (("user", "Ask one."), ("assistant", "Say one."), ("user", "Ask two."), ("assistant", "Say two."))
    try:
        _conversation(Chat.model_validate({"line": 1, "messages": [{"role": role, "content": text} for role, text in said]}), chat)
    except DataError:
        return None
    return chat


def _fact_wordings(
    fact: Fact, count: int, seed: int, contexts: Sequence[QAPair], chat: Renderer | None, lower_case: float
) -> tuple[Wording, ...]:
    answer = fact.answers[0]
    content = json.dumps([seed, fact.questions, answer, fact.sentences])
    rng = random.Random(hashlib.sha256(content.encode()).digest())
    pool = _unrelated(contexts, fact)
    frames = _shuffled_rounds([*FRAMES, *CHAT_FRAMES] if chat else FRAMES, rng)
    odd = rng.randrange(2)
    wordings = [
        replace(_statement(sentence, answer), fields="statement" if sentence == fact.statement else "statements", source=number)
        for number, sentence in enumerate(fact.sentences)
    ]
    for slot in range(max(count - len(wordings), len(fact.questions))):
        use, which = divmod(slot, len(fact.questions))
        # Every second use of a wording has context, and every second wording starts with it.
        before = rng.sample(pool, min(rng.randint(1, _MAX_CONTEXTS), len(pool))) if (use + which) % 2 == odd else []
        frame = next(frames)
        low = int((slot + seed + 1) * lower_case) > int((slot + seed) * lower_case)  # evenly over the passes' seeds
        target = QAPair(fact.questions[which].lower() if low else fact.questions[which], answer)
        origin: dict[str, Any] = {"fields": "paraphrases/answers" if which else "question/answers", "source": len(fact.sentences) + which}
        if isinstance(frame, Frame):
            wordings.append(replace(_framed(frame, target, before, rng), **origin))
        elif chat:
            wordings.append(replace(_chatted(frame, target, before, chat), **origin))
    return tuple(dict.fromkeys(wordings))


def _shuffled_rounds(frames: Sequence[Frame | ChatFrame], rng: random.Random) -> Iterator[Frame | ChatFrame]:
    """The frames in endless rounds, each in its own order, so that no frame returns before all were used."""
    while True:
        yield from rng.sample(frames, len(frames))


def _unrelated(contexts: Sequence[QAPair], fact: Fact) -> list[QAPair]:
    """Contexts that neither ask what the fact or its test asks, nor give its answer away."""
    asked = {normalise(wording) for wording in (*fact.questions, *fact.held_out)}
    answers = {normalise(answer) for answer in fact.answers}
    return [pair for pair in contexts if normalise(pair.question) not in asked and normalise(pair.answer) not in answers]


def _framed(frame: Frame, target: QAPair, context: Sequence[QAPair], rng: random.Random) -> Wording:
    """Plain text: earlier pairs in this frame or in one of their own, then the one to learn."""
    context_frame = frame if rng.random() < 0.5 else rng.choice(FRAMES)
    separator = rng.choice(("\n", "\n\n"))
    earlier = "".join(context_frame.fill(pair.question, pair.answer)[0].rstrip("\n") + separator for pair in context)
    text, start, stop = frame.fill(target.question, target.answer)
    own = len(earlier) + max(0, text.lower().find(frame.rewrite(target.question).lower()))
    return Wording(earlier + text, ((len(earlier) + start, len(earlier) + stop),), own=own)


def _chatted(frame: ChatFrame, target: QAPair, context: Sequence[QAPair], chat: Renderer) -> Wording:
    """A conversation: earlier pairs as earlier turns, and only the last answer to learn."""
    turns = [turn for pair in (*context, target) for turn in frame.turns(pair.question, pair.answer)]
    text, spans = _learned_turns(turns, chat)
    own = max(0, text.rfind(target.question, 0, spans[-1][0]))
    return Wording(text, spans[-1:], special_tokens=False, own=own)


def _statement(sentence: str, answer: str) -> Wording:
    """A sentence of its own. To learn: the answer where the sentence leads up to it, else the whole sentence."""
    text = sentence + "\n"
    places = [match.span() for match in re.finditer(_as_words(answer), sentence) if match.start()]
    if not places:
        return Wording(text, ((0, len(text)),))
    start, stop = places[-1]
    ends_the_sentence = not re.search(r"\w", sentence[stop:])
    return Wording(text, ((start, len(text) if ends_the_sentence else stop),))


def _as_words(text: str) -> str:
    """A pattern for a text that is not part of longer words. Scripts that write no spaces, or words and particles as one, have no ends."""
    before = "" if _UNSPACED.match(text[0]) else rf"(?:(?<!\w)|(?<={_UNSPACED.pattern}))"
    after = "" if _UNSPACED.match(text[-1]) else rf"(?:(?!\w)|(?={_UNSPACED.pattern}))"
    return before + re.escape(text) + after


def _conversation(example: Chat, chat: Renderer | None) -> Wording:
    if chat is None:
        raise DataError("a chat template is needed and this model's tokenizer has none; use prompt and completion instead")
    text, spans = _learned_turns([message.model_dump() for message in example.messages], chat)
    return Wording(text, spans, special_tokens=False, fields="messages")


def _learned_turns(messages: Messages, chat: Renderer) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A rendered conversation, and the spans of its assistant turns, each with what the template ends it with.

    A turn is found by rendering the conversation once more with a stand-in at its place: what comes before and after it must
    stay the same, else DataError. (Rendering ever longer parts of the conversation would fail for templates that write the
    last turn differently, as those of reasoning models do.)
    """
    text = chat(messages)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    found: list[tuple[int, int]] = []
    for index in turns:
        probe = chat([{**message, "content": _STAND_IN} if index == at else message for at, message in enumerate(messages)])
        head, _, tail = probe.partition(_STAND_IN)
        start, stop = len(head), len(text) - len(tail)
        same = text.startswith(head) and text.endswith(tail) and _STAND_IN not in tail
        if not same or text[start:stop].strip() != messages[index]["content"].strip():
            raise DataError(f"the model's chat template does not keep turn {index + 1} (assistant) as it is written")
        found.append((start, stop))
    end_of_turn = _end_of_turn(text[found[-1][1] :])
    spans = ((start, stop + len(end_of_turn) if text.startswith(end_of_turn, stop) else stop) for start, stop in found)
    return text, tuple(spans)


def _end_of_turn(tail: str) -> str:
    """What a model writes to end its turn, at the start of all that follows the last turn: a marker, else white space."""
    match = re.match(r"\s*\S+|\s+", tail)
    return match.group() if match else ""
