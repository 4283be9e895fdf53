"""Which lessons an answer comes from: effects are those of taking the lesson back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from memgraft.anchors import Anchors
from memgraft.blame import blame
from memgraft.commits import Commit
from memgraft.config import ANSWERS
from memgraft.errors import DataError
from memgraft.grafted import GraftedModel
from tests.models import graft_with_answers, lesson_at, random_rows, tiny_graft

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


def anchored(model: GraftedModel, message: str, heard_at: int, *read_at: int, seed: int) -> Commit:
    """A lesson that is open from one token of prompt and answer on and has an anchor at each of some others."""
    ids = torch.tensor([token for text in (PROMPT, ANSWER) for token in model.tokenizer(text)["input_ids"]])[None]
    cues, _ = lesson_at(model, ids, heard_at, read_at[0])
    keys = [anchors.keys for at in read_at if (anchors := lesson_at(model, ids, heard_at, at)[0].anchors) is not None]
    found = Anchors(torch.cat(keys), torch.full((len(keys),), 0.999), torch.zeros(len(keys), dtype=torch.int64))
    rows = {ANSWERS: random_rows(range(len(keys)), seed=seed)}
    commit = Commit(rows, message, {}, "d" * 64, cues=replace(cues, anchors=found))
    model.history.learn(commit)
    model.recall()
    return commit


def test_a_lesson_with_anchors_has_the_part_that_its_answers_have() -> None:
    model = graft_with_answers()
    length = len(model.tokenizer(PROMPT + ANSWER)["input_ids"])
    with model.without_memory():
        base = log_probability(model)
    first, second = anchored(model, "two", 2, 6, 12, seed=1), anchored(model, "one", 3, 13, seed=2)
    anchored(model, "not open before its anchor", 9, 4, seed=3)
    everywhere = Commit({"0": random_rows(range(0, 64, 2), seed=4, size=1e-3)}, "everywhere", {}, "d" * 64)
    model.history.learn(everywhere)
    model.recall()
    state, after = model.state(), log_probability(model)
    found = blame(model, PROMPT, ANSWER)
    assert model.state() == state
    assert found.nats == pytest.approx(after - base, abs=1e-4)
    shares = {share.commit: share for share in found.shares}
    assert shares.keys() == {first.id, second.id, everywhere.id}
    for commit, anchors in ((first, 2), (second, 1)):
        assert (shares[commit.id].slots, shares[commit.id].weight) == (anchors, pytest.approx(anchors / length))
    for share in found.shares:
        undone = model.history.copy()
        model.revert(share.commit)
        assert share.nats == pytest.approx(after - log_probability(model), abs=1e-4)
        model.history = undone
        model.recall()


@pytest.mark.parametrize(("prompt", "answer", "what"), [("", "x", "the prompt is empty"), ("x", "", "the answer is empty")])
def test_nothing_can_not_be_traced(prompt: str, answer: str, what: str) -> None:
    with pytest.raises(DataError, match=what):
        blame(tiny_graft(), prompt, answer)
