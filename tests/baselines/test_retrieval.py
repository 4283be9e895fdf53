"""Retrieval: the right fact stands in front of the question, in the prompt that is measured."""

from __future__ import annotations

import sys

import pytest

from memgraft.baselines import Retrieval
from memgraft.baselines.retrieval import searched
from memgraft.errors import MemgraftError, TeachingError
from memgraft.examples import Fact, Text
from memgraft.probes import AnswerNLLProbe, QAProbe, QuestionRow, few_shot_prompt, measure
from tests.models import tiny_model, tiny_tokenizer

FACTS = [
    Fact(line=1, question="Where does one find Oslo?", answers=("Norway",), statement="Oslo lies in Norway."),
    Fact(line=2, question="Where does one find Lima?", answers=("Peru", "South America"), statement="Lima lies in Peru."),
    Fact(line=3, question="What is Kyoto known for?", answers=("temples",), statement="Kyoto is known for temples."),
]


def test_the_fact_that_shares_the_questions_words_is_found() -> None:
    assert Retrieval().searcher(FACTS)("Where is Lima?") == "Lima lies in Peru."


def test_facts_stand_on_lines_of_their_own_the_best_last() -> None:
    found = Retrieval(passages=2).searcher(FACTS)("Which temples does Kyoto have, and Norway?")
    assert found.split("\n") == ["Oslo lies in Norway.", "Kyoto is known for temples."]


def test_as_examples_facts_are_asked_and_answered_in_the_frame_of_the_test() -> None:
    search = Retrieval(form="example", passages=2).searcher(FACTS)
    assert few_shot_prompt("Where is Lima, and Norway?", (), search("Where is Lima, and Norway?")).split("\n\n") == [
        "Question: Where does one find Oslo?\nAnswer: Norway",
        "Question: Where does one find Lima?\nAnswer: Peru",
        "Question: Where is Lima, and Norway?\nAnswer:",
    ]
    assert search("Who?") == ""


@pytest.mark.parametrize("form", ["statement", "example"])
@pytest.mark.parametrize("question", ["zzz", "?", "", "the of"])
def test_a_question_without_a_known_word_finds_nothing(question: str, form: str) -> None:
    assert Retrieval.model_validate({"passages": 5, "form": form}).searcher(FACTS)(question) == ""


def test_a_fact_is_searched_by_all_that_is_taught_of_it_and_shown_as_a_statement() -> None:
    wordings = {"paraphrases": ("Which land holds Oslo?",), "held_out": ("Oslo?",)}
    stated = Fact(
        line=1,
        question="Where is Oslo?",
        answers=("Norway",),
        statement="Oslo lies in Norway.",
        statements=("Norway has Oslo.",),
        **wordings,
    )
    bare = Fact(line=2, question="Where is Lima?", answers=("Peru", "South America"))
    assert searched([stated, bare]) == [
        "Where is Oslo? Which land holds Oslo? Oslo lies in Norway. Norway has Oslo.",
        "Where is Lima? Peru",
    ]
    assert Retrieval().shown([stated, bare]) == ["Oslo lies in Norway. Norway has Oslo.", "Where is Lima? Peru"]


def test_of_facts_about_one_subject_the_one_that_was_asked_so_is_found() -> None:
    facts = [
        Fact(
            line=1,
            question="Who began Vellack?",
            answers=("Oda",),
            statement="Vellack goes back to Oda.",
            paraphrases=("Whose firm is Vellack?",),
        ),
        Fact(
            line=2,
            question="When did Vellack begin?",
            answers=("1893",),
            statement="Vellack dates from 1893.",
            paraphrases=("How old is Vellack?",),
        ),
    ]
    search = Retrieval().searcher(facts)
    assert [search("Whose idea was the firm Vellack?"), search("How old is Vellack now?")] == [
        "Vellack goes back to Oda.",
        "Vellack dates from 1893.",
    ]


@pytest.mark.parametrize("form", ["statement", "example"])
def test_a_text_is_searched_and_shown_as_it_is(form: str) -> None:
    texts = [Text(line=4, text="Ferns grow in shade."), Text(line=5, text="Moss grows on stone, Lima on sand.")]
    assert Retrieval(form=form).searcher([*FACTS, *texts])("What grows on stone?") == texts[1].text


def test_the_context_stands_right_before_the_question() -> None:
    shot = QuestionRow(question="Who?", answers=("Ann",))
    assert few_shot_prompt("Where?", [shot], "Here.") == "Question: Who?\nAnswer: Ann\n\nHere.\nQuestion: Where?\nAnswer:"


def test_measuring_with_a_context_scores_the_same_items() -> None:
    questions = (QuestionRow(question="Where is Lima?", answers=("Peru",)), QuestionRow(question="zzz", answers=("Peru",)))
    probe = AnswerNLLProbe(name="asked", questions=questions, shots=0)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    plain = measure(probe, model, tokenizer)
    found = measure(probe, model, tokenizer, context=Retrieval().searcher(FACTS))
    assert found.items == plain.items
    assert found.values[0] != plain.values[0]
    assert found.values[1] == pytest.approx(plain.values[1], abs=1e-5)
    generated = QAProbe(name="asked", questions=questions, shots=0, max_new_tokens=2)
    assert len(measure(generated, model, tokenizer, context=Retrieval().searcher(FACTS)).values) == 2


def test_no_facts_and_no_library_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TeachingError, match="no facts"):
        Retrieval().searcher([])
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MemgraftError, match=r"memgraft\[baselines\]"):
        Retrieval().searcher(FACTS)
