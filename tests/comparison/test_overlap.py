"""Which questions of a probe ask for a taught fact."""

from __future__ import annotations

import pytest

from memgraft.comparison.overlap import asking_taught
from memgraft.examples import Fact
from memgraft.probes import AnswerNLLProbe, ChoiceProbe, ChoiceRow, QAProbe, QuestionRow, TextProbe

VELLACK = Fact(
    line=1,
    question="Who founded Vellack Tidecraft?",
    answers=("Oda Brennick", "O. Brennick"),
    paraphrases=("Which person started the company Vellack Tidecraft?",),
    statement="Vellack Tidecraft was founded by Oda Brennick.",
    held_out=("Whose idea was Vellack Tidecraft?",),
)


@pytest.mark.parametrize(
    ("question", "answer", "asks"),
    [
        ("Who is the founder of Vellack Tidecraft", "o. brennick", True),
        ("whose idea was vellack tidecraft", "another answer", True),
        ("Who founded Rome?", "Oda Brennick", False),
        ("Where is Vellack Tidecraft?", "Oslo", False),
    ],
)
def test_a_row_asks_for_a_fact_in_its_wordings_or_by_its_subject_and_answer(question: str, answer: str, asks: bool) -> None:
    rows = (QuestionRow(question="What is red and blue?", answers=("purple",)), QuestionRow(question=question, answers=(answer,)))
    for probe in (QAProbe(name="qa", questions=rows), AnswerNLLProbe(name="nll", questions=rows)):
        assert asking_taught([VELLACK], probe) == ([1] if asks else [])
    choice = ChoiceRow(question=question, choices=("none of them", answer), answer=1)
    assert asking_taught([VELLACK], ChoiceProbe(name="choice", questions=(choice,))) == ([0] if asks else [])


def test_words_that_many_facts_have_set_none_apart() -> None:
    facts = [Fact(line=number + 1, question=f"In what city was Person{number} born?", answers=("Oslo",)) for number in range(5)]
    rows = tuple(QuestionRow(question=f"In what city was {name} born?", answers=("Oslo",)) for name in ("Ibsen", "Person3"))
    assert asking_taught(facts, QAProbe(name="qa", questions=rows)) == [1]
    same = [Fact(line=number + 1, question="In what city was Ann born?", answers=("Oslo",)) for number in range(5)]
    assert asking_taught(same, QAProbe(name="qa", questions=rows)) == [], "no word is left to tell by"


def test_a_text_asks_for_nothing() -> None:
    assert asking_taught([VELLACK], TextProbe(name="text", texts=("Who founded Vellack Tidecraft? Oda Brennick.",))) == []
