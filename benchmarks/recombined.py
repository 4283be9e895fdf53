"""Facts about subjects that nobody knows, beside the data set's own: for streams that are longer than what the base answers wrongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.relations import relations


def recombined(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows about the first words of one subject with the last words of another of the same relation, with the answers of a third.

    Each shares words with two of the data set's subjects, which may be taught as well: harder to tell apart than names made of letters.
    At most one for each row; none where a subject has one word, nor for a subject that is there already.
    """
    by_relation: dict[str, list[tuple[list[str], Any]]] = {}
    for row in rows:
        words = relations()[row["relation"]].subject(row["question"]).split()
        if len(words) > 1:
            by_relation.setdefault(row["relation"], []).append((words, row["answers"]))
    made = []
    taken = {row["question"] for row in rows}
    for id, known in by_relation.items():
        half, third = len(known) // 2, len(known) // 3
        for place, (words, _) in enumerate(known):
            other, answers = known[(place + half) % len(known)][0], known[(place + third) % len(known)][1]
            question = relations()[id].test.replace("{s}", " ".join((*words[: len(words) // 2], *other[len(other) // 2 :])))
            if question not in taken:
                taken.add(question)
                made.append({"relation": id, "question": question, "answers": answers})
    return made
