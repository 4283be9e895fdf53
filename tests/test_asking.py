"""What was taught is asked for in untaught words, and an answer of any length can be told from a wrong one."""

from __future__ import annotations

from memgraft.asking import BEHIND, question_probe, questions_of
from memgraft.examples import Fact
from memgraft.probes.probe import ANSWER_TOKENS
from tests.models import tiny_tokenizer

SHORT = Fact(line=1, question="Who?", answers=("Ann", "Ann of the long list of names that nobody teaches"), held_out=("By whom?",))


def test_a_fact_is_asked_in_its_first_untaught_wording() -> None:
    bare = Fact(line=2, question="Where?", answers=("Peru",))
    assert [row.question for row in questions_of([SHORT, bare])] == ["By whom?", "Where?"]


def test_the_longest_taught_answer_has_room_and_short_ones_leave_the_probe_as_it_is() -> None:
    tokenizer = tiny_tokenizer()
    assert question_probe("asked", [SHORT], tokenizer).max_new_tokens == ANSWER_TOKENS
    number = "+44 20 7946 0958, extension 1234"
    long = Fact(line=2, question="What is the number?", answers=(number,))
    room = question_probe("asked", [SHORT, long], tokenizer).max_new_tokens
    assert room == len(tokenizer(f" {number}", add_special_tokens=False).input_ids) + BEHIND
    assert room > ANSWER_TOKENS
