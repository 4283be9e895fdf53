"""Which lessons an answer comes from: effects are those of taking the lesson back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from memgraft.blame import blame
from memgraft.commits import Commit
from memgraft.errors import DataError
from memgraft.grafted import GraftedModel
from tests.models import random_rows, tiny_graft

PROMPT, ANSWER = "Where is it?", " Here"


def lesson(model: GraftedModel, message: str, *slots: int, seed: int) -> Commit:
    commit = Commit({"0": random_rows(slots, seed=seed)}, message, {}, "d" * 64)
    model.history.learn(commit)
    model.assign_rows(model.history.state(model.config.tables, model.config.hidden_size))
    return commit


@torch.no_grad()
def log_probability(model: GraftedModel) -> float:
    tokens = [model.tokenizer(text)["input_ids"] for text in (PROMPT, ANSWER)]
    ids = torch.tensor([tokens[0] + tokens[1]])
    logits = model(input_ids=ids).logits[0, -len(tokens[1]) - 1 : -1]
    return -float(F.cross_entropy(logits, ids[0, -len(tokens[1]) :], reduction="sum"))


def test_a_lessons_effect_is_what_reverting_it_takes_away() -> None:
    model = tiny_graft(layers=(0,))
    first, second = lesson(model, "even", *range(0, 64, 2), seed=1), lesson(model, "some", *range(0, 64, 3), seed=2)
    rows = model.rows()
    found = blame(model, PROMPT, ANSWER)
    assert model.rows() == rows
    assert {share.commit for share in found.shares} == {first.id, second.id}
    assert [abs(share.nats) for share in found.shares] == sorted((abs(share.nats) for share in found.shares), reverse=True)
    after = log_probability(model)
    with model.without_memory():
        assert found.nats == pytest.approx(after - log_probability(model), abs=1e-4)
    for share in found.shares:
        assert 0 < share.weight <= 1
        assert share.largest > 0
        undone = model.history.copy()
        model.revert(share.commit)
        assert share.nats == pytest.approx(after - log_probability(model), abs=1e-4)
        model.history = undone
        model.assign_rows(rows)


def test_a_lesson_whose_slots_are_not_read_has_no_part() -> None:
    model = tiny_graft(layers=(0,))
    everything = lesson(model, "all", *range(64), seed=1)
    share = blame(model, PROMPT, ANSWER).shares[0]
    assert share.commit == everything.id
    assert share.weight == pytest.approx(1.0)
    assert 0 < share.slots < 64
    model.revert(everything.id)
    assert blame(model, PROMPT, ANSWER).shares == ()
    assert blame(model, PROMPT, ANSWER).nats == 0


@pytest.mark.parametrize(("prompt", "answer", "what"), [("", "x", "the prompt is empty"), ("x", "", "the answer is empty")])
def test_nothing_can_not_be_traced(prompt: str, answer: str, what: str) -> None:
    with pytest.raises(DataError, match=what):
        blame(tiny_graft(), prompt, answer)
