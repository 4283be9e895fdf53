"""Hand-written wordings for the 24 relations of EntityQuestions (Sciavolino et al. 2021), and facts made from its rows.

The data set asks every question of a relation with one template; that string is the test and is never taught. What is
taught are the wordings of `relations.json`, written for this project: five questions and three statements per relation.
The templates' fields are {s}, the subject, and the first answer in three forms: {a} as it stands, {an_a} with an
indefinite article, {the_a} with a definite one where English wants it ("the United Kingdom", "the University of Oslo").
Every statement names its subject first and ends in its answer, so the answer can be predicted from what precedes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from memgraft.errors import DataError

_VOWEL_SOUND = re.compile(r"(?!uni|use|eu|one\b)(?:[aeiou]|hour|heir|honor)", re.IGNORECASE)

# Names that take "the" inside a sentence: by how they begin, how they end, or as they stand.
_DEFINITE = re.compile(
    r"(?:United (?:States|Kingdom|Nations|Arab)|(?:State |\w+ )?University (?:of|at) |People's Republic|Republic of the|"
    r"(?:Kingdom|Province|Government|Community|Vale|Isle|Duchy) of |\w+ (?:School|Institute) of |(?:\w+ ){0,3}Department of |"
    r"National (?:Trust|Gallery)|Museo del |Conservatoire de |(?:\w+ ){1,2}Conservator(?:y|ium)\b)"
    r"|(?:Soviet Union|Netherlands|Philippines|Bahamas|Gambia|Uffizi|Lake District|\w+ Islands|.+ (?:Republic|Empire|Peninsula|Party))$"
)


@dataclass(frozen=True)
class Relation:
    """One relation: its Wikidata id, a readable name, the data set's own template and ours."""

    id: str
    name: str
    test: str  # the data set's question, with {s}: for testing only
    questions: tuple[str, ...]
    statements: tuple[str, ...]

    def subject(self, question: str) -> str:
        """The subject entity of one of the data set's questions.

        Raises:
            DataError: the question does not have the relation's template.
        """
        before, after = self.test.split("{s}")
        found = re.fullmatch(re.escape(before) + r"(\S|\S.*\S)" + re.escape(after), question)
        if found is None:
            raise DataError(f"question {question!r} of relation {self.id} does not read {self.test!r}")
        return found[1]


@cache
def relations() -> Mapping[str, Relation]:
    """All relations, by Wikidata id."""
    entries = json.loads(Path(__file__).with_name("relations.json").read_text(encoding="utf-8"))
    return {
        entry["relation"]: Relation(entry["relation"], entry["name"], entry["test"], tuple(entry["questions"]), tuple(entry["statements"]))
        for entry in entries
    }


def with_indefinite_article(answer: str) -> str:
    """ "actor" → "an actor", "university teacher" → "a university teacher"."""
    return f"{'an' if _VOWEL_SOUND.match(answer) else 'a'} {answer}"


def with_definite_article(answer: str) -> str:
    """ "United Kingdom" → "the United Kingdom"; names that take no article are returned unchanged."""
    return f"the {answer}" if _DEFINITE.match(answer) else answer


def _fill(template: str, subject: str, answer: str) -> str:
    # In one pass, so that a subject or an answer that contains braces stays as it is.
    parts = {"s": subject, "a": answer, "an_a": with_indefinite_article(answer), "the_a": with_definite_article(answer)}
    sentence = re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], template)
    # An answer that ends in a full stop ("anticon.") needs no second one.
    return sentence[:-1] if sentence.endswith("..") else sentence


def facts_for(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Facts in the package's data format, one per row of the data set, in order.

    Args:
        rows: mappings with `relation`, `question` and `answers`.

    Returns:
        Fact rows: the wordings to teach (`question`, `paraphrases`, `statement`, `statements`), all answers, and the data
        set's own question under `held_out`. Where a row has several answers, the statements state the first.

    Raises:
        DataError: a relation without wordings, a question that does not have its relation's template, or no answer.
    """
    return [_fact(row) for row in rows]


def _fact(row: Mapping[str, Any]) -> dict[str, Any]:
    relation = relations().get(row["relation"])
    if relation is None:
        raise DataError(f"no wordings for relation {row['relation']!r}; benchmarks/relations.json has {', '.join(relations())}")
    if not row["answers"]:
        raise DataError(f"question {row['question']!r} has no answer")
    subject, answer = relation.subject(row["question"]), row["answers"][0]
    question, *paraphrases = (_fill(template, subject, answer) for template in relation.questions)
    statements = [_fill(template, subject, answer) for template in relation.statements]
    return {
        "id": f"{relation.id}/{subject}",
        "question": question,
        "answers": list(row["answers"]),
        "statement": statements[0],
        "statements": statements,
        "paraphrases": paraphrases,
        "held_out": [row["question"]],
        "meta": {"relation": relation.id},
    }
