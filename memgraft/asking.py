"""How what was taught is asked for: one question a fact, in the frame kept for testing."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from memgraft.examples import Fact
from memgraft.probes import QAProbe, QuestionRow
from memgraft.probes.probe import ANSWER_TOKENS

BEHIND = 4  # tokens that are generated behind the longest answer, to see whether it ends there


def questions_of(facts: Sequence[Fact]) -> tuple[QuestionRow, ...]:
    """A question for each fact, in a wording that is not taught where the fact has one."""
    return tuple(QuestionRow(question=fact.held_out[0] if fact.held_out else fact.question, answers=fact.answers) for fact in facts)


def question_probe(name: str, facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase) -> QAProbe:
    """The questions as a probe, whose generated answers have room for the longest one that is taught."""
    longest = max(len(tokenizer(f" {fact.answers[0]}", add_special_tokens=False)["input_ids"]) for fact in facts)
    return QAProbe(name=name, questions=questions_of(facts), max_new_tokens=max(ANSWER_TOKENS, longest + BEHIND))
