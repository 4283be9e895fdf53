"""A tuning and a test split of the facts that share no subject, and checks that what is taught gives no test away."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from benchmarks.relations import relations
from memgraft.encoding import TokenBatch
from memgraft.errors import DataError
from memgraft.examples import Fact, normalise
from memgraft.probes import QuestionRow

Split = Literal["tuning", "test"]
SPLITS: tuple[Split, ...] = ("test", "tuning")

# Rows of the test split that `benchmarks.first` taught: a step size of the memory's was chosen by it. No choice of test facts has them.
SEEN = frozenset(
    {57, 111, 268, 340, 514, 858, 963, 1034, 1085, 1137, 1166, 1253}
    | {1312, 1358, 1427, 1569, 1606, 1723, 1839, 1873, 1940, 2008, 2136, 2251, 2315}
)


def split_of(row: Mapping[str, Any]) -> Split:
    """The split of one of the data set's rows: by a hash of its subject, so that it depends on nothing else."""
    subject = normalise(relations()[row["relation"]].subject(row["question"]))
    return "tuning" if hashlib.sha256(subject.encode()).digest()[0] % 2 else "test"


def rows_of(rows: Sequence[Mapping[str, Any]], split: Split) -> list[int]:
    """Numbers of the rows of a split; no test has those of `SEEN`."""
    return [number for number, row in enumerate(rows) if split_of(row) == split and not (split == "test" and number in SEEN)]


def check_unseen(batches: Sequence[TokenBatch], tokenizer: PreTrainedTokenizerBase, questions: Iterable[str]) -> None:
    """That no test question, nor the frame that asks it, occurs in a taught token sequence.

    Raises DataError naming the batch.
    """
    asked = {normalise(question) for question in questions}
    for batch in batches:
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            text = str(tokenizer.decode(ids[mask]))
            if "Question:" in text or "Answer:" in text:
                raise DataError(f"{batch.name}: a taught sequence has the test's frame: {text[:80]!r}")
            plain = normalise(text)
            found = next((question for question in asked if question in plain), None)
            if found is not None:
                raise DataError(f"{batch.name}: a taught sequence has the test question {found!r}")


def overlapping(facts: Sequence[Fact], questions: Sequence[QuestionRow]) -> list[int]:
    """Numbers, from 0, of the probe rows that name a taught fact's subject and accept its answer."""
    taught = [(normalise((fact.id or "").partition("/")[2]), {normalise(answer) for answer in fact.answers}) for fact in facts]
    return [
        number
        for number, row in enumerate(questions)
        if any(
            subject and subject in normalise(row.question) and answers & {normalise(answer) for answer in row.answers}
            for subject, answers in taught
        )
    ]
