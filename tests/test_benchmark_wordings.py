"""The benchmarks' hand-written wordings: complete, never the data set's own question, and the subject round-trips.

The tests that read the data set need its folder in MEMGRAFT_DATA (facts/entityquestions.jsonl is not part of the project).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.relations import Relation, facts_for, relations, with_definite_article, with_indefinite_article
from memgraft.data import normalise, read_examples
from memgraft.errors import DataError
from memgraft.examples import Fact
from memgraft.wordings import teach_wordings

RELATIONS = sorted(relations())
every_relation = pytest.mark.parametrize("relation", [relations()[name] for name in RELATIONS], ids=RELATIONS)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    folder = os.environ.get("MEMGRAFT_DATA")
    if folder is None:
        reason = "needs EntityQuestions: set MEMGRAFT_DATA to the folder that holds facts/entityquestions.jsonl"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    lines = (Path(folder) / "facts" / "entityquestions.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def row(relation: str, subject: str, *answers: str) -> dict[str, Any]:
    return {"relation": relation, "question": relations()[relation].test.replace("{s}", subject), "answers": list(answers)}


@every_relation
def test_each_relation_has_five_questions_and_three_statements(relation: Relation) -> None:
    assert len(relation.questions) == 5
    assert len(relation.statements) == 3
    assert len({normalise(template) for template in (*relation.questions, *relation.statements)}) == 8


@every_relation
def test_each_wording_names_the_subject_once_and_is_a_whole_sentence(relation: Relation) -> None:
    for question in relation.questions:
        assert re.findall(r"\{\w+\}", question) == ["{s}"], question
        assert question.endswith("?"), question
    for statement in relation.statements:
        assert re.fullmatch(r".*\{s\}.* \{(a|an_a|the_a)\}\.", statement), statement
        assert statement.count("{") == 2, statement
    for template in (*relation.questions, *relation.statements):
        assert template[0] == "{" or template[0].isupper(), template
        assert template == " ".join(template.split()), template


@every_relation
def test_no_wording_holds_a_question_of_the_data_set(relation: Relation) -> None:
    tests = [normalise(other.test.replace("{s}", "Xyzzy")) for other in relations().values()]
    for template in (*relation.questions, *relation.statements):
        ours = normalise(re.sub(r"\{\w+\}", "Xyzzy", template))
        assert not any(test in ours or ours in test for test in tests), template


@given(st.sampled_from(RELATIONS), st.text(min_size=1).map(str.strip).filter(lambda text: text and "\n" not in text))
def test_the_subject_round_trips(name: str, subject: str) -> None:
    relation = relations()[name]
    assert relation.subject(relation.test.replace("{s}", subject)) == subject


def test_a_fact_has_the_wordings_the_answers_and_the_held_out_question() -> None:
    (fact,) = facts_for([row("P106", "Ida Quellmarsh", "astronomer", "poet")])
    assert fact["id"] == "P106/Ida Quellmarsh"
    assert fact["question"] == "What is the profession of Ida Quellmarsh?"
    assert fact["answers"] == ["astronomer", "poet"]
    assert fact["statement"] == fact["statements"][0] == "Ida Quellmarsh is known for working as an astronomer."
    assert len(fact["paraphrases"]) == 4
    assert fact["held_out"] == ["What kind of work does Ida Quellmarsh do?"]
    assert fact["meta"] == {"relation": "P106"}


def test_braces_in_names_are_kept_and_full_stops_are_not_doubled() -> None:
    (braces,) = facts_for([row("P264", "Song {a}", "{s} Records")])
    assert braces["statement"] == "Song {a} is on the label {s} Records."
    (stop,) = facts_for([row("P112", "Quellmarsh Ltd.", "Ida Quellmarsh Jr.")])
    assert stop["statement"] == "Quellmarsh Ltd. was established by Ida Quellmarsh Jr."
    (ellipsis,) = facts_for([row("P50", "Then...", "Someone...")])
    assert ellipsis["statement"] == "Then... was written by Someone..."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("actor", "an actor"),
        ("poet", "a poet"),
        ("university teacher", "a university teacher"),
        ("European", "a European"),
        ("outfielder", "an outfielder"),
        ("umpire", "an umpire"),
        ("AV Idol", "an AV Idol"),
    ],
)
def test_indefinite_article(answer: str, expected: str) -> None:
    assert with_indefinite_article(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        *("United States of America", "Netherlands", "Czech Republic", "Falkland Islands", "Soviet Union", "National Trust for Scotland"),
        *("University of Oslo", "Hebrew University of Jerusalem", "New England Conservatory of Music", "Iberian Peninsula"),
    ],
)
def test_names_that_take_a_definite_article(answer: str) -> None:
    assert with_definite_article(answer) == f"the {answer}"


@pytest.mark.parametrize(
    "answer", ["Iran", "Harvard University", "The Hague", "South Georgia and the South Sandwich Islands", "Lake Oswego"]
)
def test_names_that_take_none(answer: str) -> None:
    assert with_definite_article(answer) == answer


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"relation": "P999", "question": "Who?", "answers": ["x"]}, "no wordings for relation 'P999'"),
        ({"relation": "P19", "question": "When was Ida born?", "answers": ["x"]}, "does not read 'Where was {s} born"),
        ({"relation": "P19", "question": "Where was  born?", "answers": ["x"]}, "does not read"),
        ({"relation": "P19", "question": "Where was Ida born?", "answers": []}, "has no answer"),
    ],
)
def test_rows_that_do_not_fit_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        facts_for([bad])


def test_every_question_of_the_data_set_round_trips(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 2400
    assert {row["relation"] for row in rows} == set(RELATIONS)
    for each in rows:
        relation = relations()[each["relation"]]
        assert relation.test.replace("{s}", relation.subject(each["question"])) == each["question"]


def test_no_taught_string_is_a_question_of_the_data_set(rows: list[dict[str, Any]]) -> None:
    tested = {normalise(each["question"]) for each in rows}
    for fact in facts_for(rows):
        taught = {normalise(text) for text in (fact["question"], *fact["paraphrases"], *fact["statements"])}
        assert len(taught) == 8
        assert not taught & tested


def test_the_facts_are_a_valid_data_file_and_their_statements_lead_up_to_the_answer(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in facts_for(rows)), encoding="utf-8")
    examples = read_examples(path).examples
    assert len(examples) == len(rows)
    for fact in examples:
        assert isinstance(fact, Fact)
        for statement in teach_wordings(fact, seed=0, contexts=(), chat=None)[:3]:
            ((start, stop),) = statement.spans
            assert statement.text[start:stop].startswith(fact.answers[0])
            assert stop == len(statement.text)
