"""Questions beside the taught facts, asked of every method on the test split: what must not change with them.

*Near misses* ask a taught relation about subjects that were not taught, where the base is sure of its answer, right or wrong; F1 is
that of the base's own answer, so the base has 1. *Leaks* ask another relation about a taught subject; F1 is that of the taught
answer, which is not wanted there, so the base has about 0.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.measurement import SHOTS
from benchmarks.relations import relations
from memgraft.probes import QAProbe, QuestionRow, f1, generate_answers
from memgraft.probes.likelihood import answer_sums
from memgraft.probes.measuring import few_shot_prompts

SURE = 0.5  # probability of its own answer from which on the base counts as knowing what it says


class Known(NamedTuple):
    """What the base answers to a question."""

    answer: str
    probability: float  # of the whole answer
    f1: float


def known(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[QuestionRow]) -> list[Known]:
    """A model's answer to each question, five examples in front, and how sure it is."""
    prompts = few_shot_prompts(questions, SHOTS)
    answers = generate_answers(model, tokenizer, prompts)
    said = [index for index, answer in enumerate(answers) if answer]
    sums = answer_sums(model, tokenizer, [prompts[i] for i in said], [answers[i] for i in said])
    sure = dict(zip(said, (math.exp(-total) for total in sums.totals), strict=True))
    scores = (f1(answer, row.answers) for answer, row in zip(answers, questions, strict=True))
    return [Known(answer, round(sure.get(index, 0.0), 6), score) for index, (answer, score) in enumerate(zip(answers, scores, strict=True))]


def subject_of(row: Mapping[str, Any]) -> str:
    """The subject that a row of the data set asks about."""
    return relations()[row["relation"]].subject(row["question"])


def near_misses(name: str, rows: Sequence[Mapping[str, Any]], taught: Sequence[int], sure: Mapping[int, str]) -> QAProbe | None:
    """Rows of the taught relations about other subjects; None where the base is sure of none.

    Args:
        taught: numbers of the taught rows.
        sure: number of a row → the answer that the base is sure of.
    """
    questions = tuple(QuestionRow(question=rows[number]["question"], answers=(sure[number],)) for number in near_rows(rows, taught, sure))
    return QAProbe(name=name, questions=questions, shots=SHOTS) if questions else None


def near_rows(rows: Sequence[Mapping[str, Any]], taught: Sequence[int], sure: Iterable[int]) -> list[int]:
    """Numbers of the rows that are near misses of these taught rows, of those that the base is sure of."""
    subjects, asked = {subject_of(rows[number]) for number in taught}, {rows[number]["relation"] for number in taught}
    return [number for number in sure if rows[number]["relation"] in asked and subject_of(rows[number]) not in subjects]


def leaks(name: str, rows: Sequence[Mapping[str, Any]], taught: Sequence[int], seed: int) -> QAProbe:
    """Of each taught subject one other relation, drawn by the seed, whether or not it makes sense of it."""
    order, questions = random.Random(seed), []
    for number in taught:
        row = rows[number]
        other = order.choice([relation for relation in relations().values() if relation.id != row["relation"]])
        questions.append(QuestionRow(question=other.test.replace("{s}", subject_of(row)), answers=tuple(row["answers"])))
    return QAProbe(name=name, questions=tuple(questions), shots=SHOTS)
