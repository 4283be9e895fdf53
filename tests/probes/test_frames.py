"""The prompts that tests ask with."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from memgraft.errors import DataError
from memgraft.probes import QuestionRow, chat_prompt, few_shot_prompt
from memgraft.probes.frames import choose_shots, packaged_shots

SHOTS = [QuestionRow(question=f"What is {number}?", answers=(f"number {number}", "else")) for number in range(6)]


def test_the_few_shot_frame_is_exactly_this() -> None:
    assert few_shot_prompt("Who?", SHOTS[:2]) == (
        "Question: What is 0?\nAnswer: number 0\n\nQuestion: What is 1?\nAnswer: number 1\n\nQuestion: Who?\nAnswer:"
    )
    assert few_shot_prompt("Who?", ()) == "Question: Who?\nAnswer:"


def test_a_question_is_never_its_own_example() -> None:
    assert choose_shots(" what IS 1? ", SHOTS, 3) == (SHOTS[0], SHOTS[2], SHOTS[3])
    assert choose_shots("Who?", SHOTS, 3) == tuple(SHOTS[:3])


def test_the_package_ships_enough_examples_for_five_shots_and_one_left_out() -> None:
    shots = packaged_shots()
    assert len(shots) >= 6
    assert len({shot.question for shot in shots}) == len(shots)


def test_a_chat_prompt_ends_where_the_model_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        assert chat_prompt(tokenizer, "Who?") == "[user] Who?\n[assistant] "
    finally:
        tokenizer.chat_template = before


def test_a_tokenizer_without_chat_template_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="no chat template"):
        chat_prompt(tokenizer, "Who?")
