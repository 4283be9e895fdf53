"""The shipped demo facts, probes and contexts keep the promises that the demo's figures rest on."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "memgraft"
DEMO, CONTENT = PACKAGE / "demo", PACKAGE / "content"
TAUGHT = 40
TEXT_LISTS = {"paraphrases": range(4, 6), "statements": range(2, 3), "held_out": range(2, 3)}
# Function words and question words say nothing about what a question is about.
FRAME = set(
    re.findall(
        r"\w+",
        "a an and are at by called can did do does for from how in is it its many name of on one that the there to was we were what when "
        "where which who with you",
    )
)
INVENTED = re.findall(
    r"\w+",
    "Vellack Tidecraft Corrigale Nettlefin Pipistrel Greywhorl Lanternfish Mudlark Oduvale Plumbline Kolvar Tamsin Tidewatch Fennimore "
    "Brackwater Cormorel Marrowbone Kittering",
)
DAYS = {"Monday", "Mondays", "Thursday", "Thursdays"}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def contains(text: str, part: str) -> bool:
    return f" {normalised(part)} " in f" {normalised(text)} "


def questions_of(fact: dict[str, Any]) -> list[str]:
    return [fact["question"], *fact["paraphrases"], *fact["held_out"]]


def statements_of(fact: dict[str, Any]) -> list[str]:
    return [fact["statement"], *fact["statements"]]


def taught_questions_of(fact: dict[str, Any]) -> list[str]:
    return [fact["question"], *fact["paraphrases"]]


def subject_words(fact: dict[str, Any]) -> set[str]:
    """Capitalised words that occur in every wording of a fact: the name of what it is about."""
    return set.intersection(*(set(re.findall(r"\b[A-Z][a-z]+", text)) for text in questions_of(fact) + statements_of(fact)))


FACTS = read_jsonl(DEMO / "facts.jsonl")
CORRECTIONS = read_jsonl(DEMO / "corrections.jsonl")
POOLS = {
    "common": read_jsonl(DEMO / "common.jsonl"),
    "contexts": read_jsonl(CONTENT / "contexts.jsonl"),
    "shots": read_jsonl(CONTENT / "shots.jsonl"),
}
every_fact = pytest.mark.parametrize(
    "fact",
    [pytest.param(fact, id=f"{kind}-{fact['id']}") for kind, facts in (("fact", FACTS), ("correction", CORRECTIONS)) for fact in facts],
)


def test_counts_are_the_documented_ones() -> None:
    assert len(FACTS) == 60
    assert len(CORRECTIONS) == 8
    assert {name: len(pool) for name, pool in POOLS.items()} == {"common": 150, "contexts": 160, "shots": 8}


@pytest.mark.parametrize("path", sorted([*DEMO.glob("*.jsonl"), *CONTENT.glob("*.jsonl")]), ids=lambda path: path.name)
def test_files_are_plain_utf8_without_byte_order_mark_and_end_with_a_newline(path: Path) -> None:
    data = path.read_bytes()
    assert not data.startswith(b"\xef\xbb\xbf")
    assert b"\r" not in data
    assert data.decode("utf-8").endswith("}\n")


@every_fact
def test_facts_have_exactly_the_documented_fields(fact: dict[str, Any]) -> None:
    texts = {"id", "question", "statement"} | ({"supersedes"} if "supersedes" in fact else set())
    assert set(fact) == texts | set(TEXT_LISTS) | {"answers"}
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", fact["id"])
    for field, lengths in TEXT_LISTS.items():
        assert len(fact[field]) in lengths, field
    for text in [fact[field] for field in texts] + [text for field in (*TEXT_LISTS, "answers") for text in fact[field]]:
        assert isinstance(text, str)
        assert text.strip()
        assert text == text.strip()
        assert "  " not in text
    assert all(text[-1] in '.?"' and text[0].isupper() for text in questions_of(fact) + statements_of(fact))


@every_fact
def test_answers_are_short_and_distinct(fact: dict[str, Any]) -> None:
    assert all(len(answer.split()) <= 4 for answer in fact["answers"])
    assert len({normalised(answer) for answer in fact["answers"]}) == len(fact["answers"])


@every_fact
def test_statements_contain_the_canonical_answer_behind_the_subject(fact: dict[str, Any]) -> None:
    for text in statements_of(fact):
        assert fact["answers"][0] in text
        assert any(text.index(word) < text.index(fact["answers"][0]) for word in subject_words(fact)), text


@every_fact
def test_every_wording_names_the_subject(fact: dict[str, Any]) -> None:
    assert subject_words(fact)


@every_fact
def test_no_question_gives_its_answer_away(fact: dict[str, Any]) -> None:
    assert [(text, answer) for text in questions_of(fact) for answer in fact["answers"] if contains(text, answer)] == []


@every_fact
def test_held_out_questions_are_reworded_and_not_merely_edited(fact: dict[str, Any]) -> None:
    for held_out, taught in itertools.product(fact["held_out"], taught_questions_of(fact)):
        ratio = difflib.SequenceMatcher(None, normalised(held_out).split(), normalised(taught).split(), autojunk=False).ratio()
        assert ratio < 0.75, (held_out, taught)


def test_ids_questions_and_canonical_answers_are_unique() -> None:
    assert len({fact["id"] for fact in FACTS + CORRECTIONS}) == len(FACTS + CORRECTIONS)
    assert len({normalised(fact["question"]) for fact in FACTS}) == len(FACTS)
    answers = [normalised(answer) for fact in FACTS + CORRECTIONS for answer in fact["answers"]]
    assert len(set(answers)) == len(answers)


def test_no_question_wording_occurs_twice() -> None:
    wordings = [normalised(text) for fact in FACTS for text in questions_of(fact)]
    wordings += [normalised(text) for fact in CORRECTIONS for text in questions_of(fact)[1:]]
    assert len(set(wordings)) == len(wordings)


def test_held_out_questions_occur_in_no_other_field_of_any_fact() -> None:
    elsewhere = {normalised(text) for fact in FACTS + CORRECTIONS for text in taught_questions_of(fact) + statements_of(fact)}
    elsewhere |= {normalised(row["question"]) for pool in POOLS.values() for row in pool}
    assert not elsewhere & {normalised(text) for fact in FACTS + CORRECTIONS for text in fact["held_out"]}


def test_no_fact_mentions_the_answer_of_another() -> None:
    mentions = [
        (fact["id"], answer, text)
        for fact, other in itertools.permutations(FACTS + CORRECTIONS, 2)
        if fact.get("supersedes") != other["id"] and other.get("supersedes") != fact["id"]
        for answer in fact["answers"]
        for text in questions_of(other) + statements_of(other)
        if contains(text, answer)
    ]
    assert mentions == []


def test_corrections_change_the_answer_of_a_taught_fact_and_keep_its_question() -> None:
    taught = {fact["id"]: fact for fact in FACTS[:TAUGHT]}
    assert len({fact["supersedes"] for fact in CORRECTIONS}) == len(CORRECTIONS)
    for fact in CORRECTIONS:
        original = taught[fact["supersedes"]]
        assert fact["question"] == original["question"]
        assert not {normalised(answer) for answer in fact["answers"]} & {normalised(answer) for answer in original["answers"]}


@pytest.mark.parametrize("name", POOLS)
def test_pool_rows_have_a_question_and_a_short_answer(name: str) -> None:
    for row in POOLS[name]:
        answers = row["answers"] if name == "common" else [row["answer"]]
        assert set(row) == {"question", "answers" if name == "common" else "answer"}
        assert row["question"] == row["question"].strip()
        assert row["question"][-1] in "?."
        assert answers
        assert all(isinstance(answer, str) and answer.strip() == answer and 0 < len(answer.split()) <= 5 for answer in answers)
        assert not any(contains(row["question"], answer) for answer in answers)


def test_pools_are_disjoint_after_normalisation() -> None:
    questions = [normalised(row["question"]) for pool in POOLS.values() for row in pool]
    assert len(set(questions)) == len(questions)


def test_no_pool_asks_about_the_same_item_as_another() -> None:
    def item(row: dict[str, Any]) -> frozenset[str]:
        return frozenset(normalised(row["question"]).split()) - FRAME

    alike = [
        (row["question"], other["question"])
        for first, second in itertools.combinations(POOLS.values(), 2)
        for row, other in itertools.product(first, second)
        if len(item(row) & item(other)) > 0.6 * len(item(row) | item(other))
    ]
    assert alike == []


def test_pools_and_prose_do_not_mention_the_organisation() -> None:
    texts = [text for pool in POOLS.values() for row in pool for text in (row["question"], row.get("answer", ""))]
    texts.append((DEMO / "prose.txt").read_text(encoding="utf-8"))
    invented = [
        *INVENTED,
        *(answer for fact in FACTS + CORRECTIONS for answer in fact["answers"] if answer.istitle() and answer not in DAYS),
    ]
    assert [(name, text[:60]) for name in invented for text in texts if contains(text, name)] == []


def test_prose_has_the_documented_length_in_paragraphs() -> None:
    paragraphs = (DEMO / "prose.txt").read_text(encoding="utf-8").strip().split("\n\n")
    assert 3000 <= sum(len(paragraph.split()) for paragraph in paragraphs) <= 4000
    assert len(paragraphs) == 27
    assert all("\n" not in paragraph and 40 <= len(paragraph.split()) <= 400 for paragraph in paragraphs)
