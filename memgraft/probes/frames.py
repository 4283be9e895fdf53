"""Prompts that ask a question in a test. The few-shot frame is reserved for testing: nothing is ever taught in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from transformers import PreTrainedTokenizerBase

from memgraft.errors import DataError
from memgraft.probes.rows import QuestionRow, parse_rows


def few_shot_prompt(question: str, shots: Sequence[QuestionRow], context: str = "") -> str:
    """The shots with their first answers, then the question: 'Question: …\\nAnswer: …\\n\\nQuestion: {question}\\nAnswer:'.

    A context stands on lines of its own right before the question.
    """
    examples = [f"Question: {shot.question}\nAnswer: {shot.answers[0]}\n\n" for shot in shots]
    return "".join(examples) + (f"{context}\n" if context else "") + f"Question: {question}\nAnswer:"


class ChatPrompt(str):
    """A prompt that a chat format wrote, special tokens included: a tokenizer adds none to it."""


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> ChatPrompt:
    """The question as a user's only message in the tokenizer's chat format, up to where the model answers.

    Raises DataError if the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise DataError(f"the tokenizer {tokenizer.name_or_path!r} has no chat template: ask with few_shot_prompt instead")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False)
    return ChatPrompt(prompt)


@cache
def packaged_shots() -> tuple[QuestionRow, ...]:
    """The example questions that ship with the package, all of them."""
    source = files("memgraft") / "content" / "shots.jsonl"
    return tuple(parse_rows(source.read_bytes(), "memgraft/content/shots.jsonl", QuestionRow))


def choose_shots(question: str, shots: Sequence[QuestionRow], count: int) -> tuple[QuestionRow, ...]:
    """The first `count` shots that do not ask the question itself."""
    asked = question.strip().casefold()
    return tuple(shot for shot in shots if shot.question.strip().casefold() != asked)[:count]
