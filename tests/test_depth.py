"""The depth at which facts are read is chosen by how well questions about one subject are told apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.relations import relations
from memgraft import depth
from memgraft.answer_layer import FAINTEST, Asked, discriminants, folds
from memgraft.blocks import find_blocks, hidden_states_before, hidden_states_before_each
from memgraft.depth import choose_answer_layer, confusion, default_answer_layer, depths
from memgraft.frames import load_unknown
from memgraft.grafting import graft
from memgraft.questions import unknown_questions_asked, up_to_answers
from tests.models import graft_with_answers, tiny_graft, tiny_model, tiny_tokenizer


def asked(apart: float, *, width: int = 80, seed: int = 0) -> tuple[Asked, Tensor]:
    """States of six questions about each of four subjects of two kinds, in six forms each; the questions are so far apart."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(24).repeat_interleave(6)
    subjects = groups // 6
    of_subject, of_question = torch.randn(4, width, generator=generator), apart * torch.randn(6, width, generator=generator)
    noise = 0.5 * torch.randn(len(groups), width, generator=generator)
    plain = torch.arange(6).repeat(24) >= 3
    return Asked(of_subject[subjects] + of_question[groups % 6] + noise, groups, plain, subjects // 2), subjects


@pytest.mark.parametrize("apart", [0.0, 0.2, 2.0])
def test_confusion_counts_pairs_in_which_another_question_about_the_subject_is_liker(apart: float) -> None:
    tokens, subjects = asked(apart)
    worse, pairs = 0.0, 0
    own, others = [], []
    for seen, _ in folds(tokens):
        mean, projection = discriminants(seen)
        queries = functional.normalize((tokens.hidden_ED - mean) @ projection, dim=-1)
        (kind,) = {0, 1} - set(seen.kinds.tolist())
        for group in tokens.groups[tokens.kinds == kind].unique():
            taught = [i for i in range(len(queries)) if tokens.groups[i] == group and not tokens.plain[i]]
            of_two = torch.stack([queries[a] @ queries[b] for a in taught for b in taught if a < b]).mean().clamp_min(FAINTEST)
            for i in range(len(queries)):
                if tokens.plain[i] and subjects[i] == subjects[taught[0]]:
                    likeness = torch.stack([queries[i] @ queries[b] for b in taught]).mean() / of_two
                    (own if tokens.groups[i] == group else others).append(float(likeness))
    for mine in own:
        for theirs in others:
            pairs += 1
            worse += theirs >= mine
    assert confusion(tokens, subjects) == pytest.approx(worse / pairs, abs=2e-3)


def test_confusion_falls_as_questions_are_told_apart() -> None:
    far, near, same = (confusion(*asked(apart)) for apart in (2.0, 0.2, 0.0))
    assert far < 0.02 < near < 0.45 < same < 0.55


def test_the_usual_depth_stays_unless_another_one_is_far_better(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_graft(tiny_model(depth=12), layers=(4,), answer_layer=9)
    candidates = depths(12, 9, (4,))
    assert candidates == [6, 7, 8, 9, 10]
    monkeypatch.setattr(depth, "_last_states", lambda *_: [torch.zeros(1, 4)] * len(candidates))
    for confused, chosen in (([0.2, 0.09, 0.13, 0.2, 0.4], 7), ([0.2, 0.11, 0.14, 0.2, 0.4], 9), ([0.1, 0.2, 0.2, 0.0, 0.0], 9)):
        found = iter(confused)
        monkeypatch.setattr(depth, "confusion", lambda *_, found=found: next(found))
        assert choose_answer_layer(model) == chosen


def test_a_graft_reads_facts_at_the_depth_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["The ship left the harbour at dawn.", "A lamp stood by the chair."]
    monkeypatch.setattr("memgraft.grafting.choose_answer_layer", lambda *_: 3)
    model = graft(tiny_model(depth=6), tiny_tokenizer(), background=texts, slots=64)
    assert model.config.answer_layer == 3
    assert [len(block._forward_pre_hooks) for block in model.blocks] == [0, 0, 1, 1, 0, 0]
    assert model.answers is not None
    told = graft(tiny_model(depth=6), tiny_tokenizer(), background=texts, slots=64, answer_layer=3)
    assert told.answers is not None
    assert torch.equal(model.answers.begins_projection, told.answers.begins_projection)
    assert graft(tiny_model(depth=6), tiny_tokenizer(), background=texts, slots=64, answer_layer=5).config.answer_layer == 5
    assert not any(block._forward_pre_hooks for block in find_blocks(model.detach()))


def test_few_depths_are_compared_and_all_lie_behind_the_memory() -> None:
    assert depths(30, 22, (10,)) == [16, 18, 20, 22, 24, 26]
    assert depths(18, 13, (6,)) == [9, 10, 11, 12, 13, 14, 15]
    assert depths(30, 22, (20,)) == [21, 22, 23, 24, 25, 26]
    for blocks in range(2, 130):
        memory = (max(0, round(blocks / 3)),)
        usual = default_answer_layer(blocks, memory)
        if usual is not None:
            found = depths(blocks, usual, memory)
            assert usual in found
            assert len(found) <= depth.MOST + 2
            assert memory[0] < found[0] <= found[-1] < blocks


def test_what_is_asked_of_made_up_subjects_is_no_question_of_the_benchmarks() -> None:
    asked = {question for relation in relations().values() for question in (relation.test, *relation.questions)}
    assert asked
    assert not asked & {question for subjects in load_unknown() for question in subjects.questions}


@pytest.mark.usefixtures("all_unknown_subjects")
def test_all_made_up_subjects_choose_a_depth() -> None:
    model = tiny_graft(tiny_model(depth=6), layers=(2,), answer_layer=4)
    confused = depth.confusions(model)
    assert list(confused) == [3, 4, 5]
    assert all(0 < each < 0.5 for each in confused.values())
    assert choose_answer_layer(model) in confused


def test_states_of_last_tokens_are_those_of_single_passes() -> None:
    model = graft_with_answers()
    blocks = model.blocks
    sequences = [ids for each in list(unknown_questions_asked(model.tokenizer, 4096, 1))[:3] for ids in up_to_answers(each.forms)]
    told: list[tuple[int, int]] = []
    found = depth._last_states(model, [1, 3], sequences, lambda *at: told.append(at))
    assert told[-1] == (len(sequences), len(sequences))
    for layer, states in zip([1, 3], found, strict=True):
        slow = [hidden_states_before(model.base, blocks, layer, input_ids=torch.tensor([ids]))[0, -1] for ids in sequences]
        torch.testing.assert_close(states, torch.stack(slow).float(), atol=1e-4, rtol=1e-4)
    hooks = [dict(block._forward_pre_hooks) for block in blocks]
    both = hidden_states_before_each(model.base, blocks, [1, 3], input_ids=torch.tensor([sequences[0]]))
    assert torch.equal(both[1], hidden_states_before(model.base, blocks, 3, input_ids=torch.tensor([sequences[0]])))
    assert [dict(block._forward_pre_hooks) for block in blocks] == hooks


def test_a_context_that_holds_no_question_keeps_the_usual_depth() -> None:
    assert choose_answer_layer(tiny_graft(tiny_model(depth=12, max_position_embeddings=8), layers=(4,), answer_layer=9)) == 9
