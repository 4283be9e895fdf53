"""Retrieval: the right passage stands in front of the question, in the prompt that is measured."""

from __future__ import annotations

import sys

import pytest

from memgraft.baselines import Retrieval
from memgraft.baselines.retrieval import passages_of
from memgraft.errors import MemgraftError, TeachingError
from memgraft.examples import Fact
from memgraft.probes import AnswerNLLProbe, QAProbe, QuestionRow, few_shot_prompt, measure
from tests.models import tiny_model, tiny_tokenizer

PASSAGES = ["Oslo lies in Norway.", "Lima lies in Peru.", "Kyoto is known for temples."]


def test_the_passage_that_shares_the_questions_words_is_found() -> None:
    assert Retrieval().searcher(PASSAGES)("Where is Lima?") == PASSAGES[1]


def test_passages_stand_on_lines_of_their_own_the_best_last() -> None:
    assert Retrieval(passages=2).searcher(PASSAGES)("Which temples does Kyoto have, and Norway?").split("\n") == [PASSAGES[0], PASSAGES[2]]


@pytest.mark.parametrize("question", ["zzz", "?", "", "the of"])
def test_a_question_without_a_known_word_finds_nothing(question: str) -> None:
    assert Retrieval(passages=5).searcher(PASSAGES)(question) == ""


def test_a_fact_is_searched_by_its_statements_or_else_by_question_and_answer() -> None:
    stated = Fact(
        line=1, question="Where is Oslo?", answers=("Norway",), statement="Oslo lies in Norway.", statements=("Norway has Oslo.",)
    )
    bare = Fact(line=2, question="Where is Lima?", answers=("Peru",))
    assert passages_of([stated, bare]) == ["Oslo lies in Norway. Norway has Oslo.", "Where is Lima? Peru"]


def test_the_context_stands_right_before_the_question() -> None:
    shot = QuestionRow(question="Who?", answers=("Ann",))
    assert few_shot_prompt("Where?", [shot], "Here.") == "Question: Who?\nAnswer: Ann\n\nHere.\nQuestion: Where?\nAnswer:"


def test_measuring_with_a_context_scores_the_same_items() -> None:
    questions = (QuestionRow(question="Where is Lima?", answers=("Peru",)), QuestionRow(question="zzz", answers=("Peru",)))
    probe = AnswerNLLProbe(name="asked", questions=questions, shots=0)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    plain = measure(probe, model, tokenizer)
    found = measure(probe, model, tokenizer, context=Retrieval().searcher(PASSAGES))
    assert found.items == plain.items
    assert found.values[0] != plain.values[0]
    assert found.values[1] == pytest.approx(plain.values[1], abs=1e-5)
    generated = QAProbe(name="asked", questions=questions, shots=0, max_new_tokens=2)
    assert len(measure(generated, model, tokenizer, context=Retrieval().searcher(PASSAGES)).values) == 2


def test_no_passages_and_no_library_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TeachingError, match="no passages"):
        Retrieval().searcher([])
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MemgraftError, match=r"memgraft\[baselines\]"):
        Retrieval().searcher(PASSAGES)
