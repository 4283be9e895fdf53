"""Which facts a benchmark teaches: those that the base model answers wrongly, spread over the relations.

As many untaught facts of the same relations, chosen by the same rule, are the control: what they gain comes from knowing
which type of answer a relation wants, not from having learned the fact.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memgraft.config import Config
from memgraft.errors import DataError


class Selection(Config):
    """Row numbers, from 0, of the data set's file. `control[i]` is of the same relation as `taught[i]`, where there are relations."""

    taught: tuple[int, ...]
    control: tuple[int, ...]


def select_facts(
    rows: Sequence[Mapping[str, Any]], is_wrong: Callable[[Sequence[int]], Sequence[bool]], count: int, seed: int
) -> Selection:
    """The first `count` facts, and as many controls, that the base answers wrongly, in an order shuffled by the seed.

    Relations take turns, so they differ by one fact at most. Within a relation taught and control facts alternate. No
    question is chosen twice, even where two relations of the data set ask the same.

    Args:
        rows: the data set, with `relation` and `question`.
        is_wrong: asks the base model the questions of the given row numbers; called with a few dozen rows at a time.

    Raises:
        DataError: a relation has too few questions that the base answers wrongly.
    """
    rng = random.Random(seed)
    relations = sorted({row["relation"] for row in rows})
    rng.shuffle(relations)
    turns = [relations[turn % len(relations)] for turn in range(count)]
    wanted = {relation: 2 * turns.count(relation) for relation in relations}
    queues = {relation: [index for index, row in enumerate(rows) if row["relation"] == relation] for relation in relations}
    for queue in queues.values():
        rng.shuffle(queue)
    wrong: dict[str, list[int]] = {relation: [] for relation in relations}
    taken = set[str]()
    while short := {relation: number - len(wrong[relation]) for relation, number in wanted.items() if number > len(wrong[relation])}:
        asked = []
        for relation, number in short.items():
            if not queues[relation]:
                raise DataError(
                    f"relation {relation}: the base answers only {len(wrong[relation])} of its questions wrongly, {wanted[relation]} wanted"
                )
            asked += queues[relation][:number]
            del queues[relation][:number]
        for index, is_chosen in zip(asked, is_wrong(asked), strict=True):
            row = rows[index]
            if is_chosen and row["question"] not in taken:
                taken.add(row["question"])
                wrong[row["relation"]].append(index)
    turn_of = Counter[str]()
    taught, control = [], []
    for relation in turns:
        first = 2 * turn_of[relation]
        turn_of[relation] += 1
        taught.append(wrong[relation][first])
        control.append(wrong[relation][first + 1])
    return Selection(taught=tuple(taught), control=tuple(control))
