"""Which whitening states get is told by whether made-up subjects are heard again when their questions are put in other ways."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memgraft import recall
from memgraft.calibration import SHRINKAGE, random_directions, whitening
from memgraft.finding import find_cues
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.questions import unknown_questions_asked
from memgraft.recall import kinds_of, kinds_to_whiten, missed
from memgraft.states import background_states
from tests.models import tiny_model, tiny_tokenizer

TEXTS = ["The lamp is lit at dusk, and the ferry leaves at noon. " * 6, "Boats come in at noon. The mayor plants a beech tree. " * 5]
WIDTH = 16


def grafted(name: str = "llama", **settings: int) -> GraftedModel:
    return graft(tiny_model(name, **settings), tiny_tokenizer(), slots=64, background=TEXTS)


def tokens_of(model: GraftedModel) -> tuple[Tensor, list[list[int]]]:
    assert model.background is not None
    parts, _ = model.background.split(model.tokenizer)
    return torch.cat([hidden[1:] for hidden in background_states(model, model.config.layers[0], parts)]), parts


def random_states(count: int, seed: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_what_varies_within_a_kind_is_whitened_and_tokens_that_are_alone_do_not_count() -> None:
    kinds = torch.cat([torch.arange(20).repeat(5), torch.arange(20, 60)])[torch.randperm(140, generator=torch.Generator().manual_seed(5))]
    hidden = random_states(len(kinds), 0)
    members = defaultdict(list)
    for state, kind in zip(hidden.double(), kinds.tolist(), strict=True):
        members[kind].append(state)
    apart = [state - torch.stack(of_kind).mean(0) for of_kind in members.values() if len(of_kind) > 1 for state in of_kind]
    covariance = sum(state[:, None] * state[None] for state in apart) / len(apart)
    variances, directions = torch.linalg.eigh(torch.as_tensor(covariance))
    expected = directions * (variances.clamp_min(0) + SHRINKAGE * variances.clamp_min(0).median().clamp_min(1e-12)).rsqrt() @ directions.T
    mean, matrix = whitening(hidden, kinds)
    torch.testing.assert_close(mean, hidden.mean(0))
    torch.testing.assert_close(matrix, expected.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pairs", [0, 1, 15])
def test_where_too_few_tokens_are_not_alone_all_that_varies_is_whitened(pairs: int) -> None:
    hidden, kinds = random_states(60, 1), torch.arange(60)
    kinds[:pairs] = torch.arange(60 - pairs, 60)
    for usual, other in zip(whitening(hidden), whitening(hidden, kinds), strict=True):
        assert torch.equal(usual, other)


def test_a_place_that_moves_all_states_is_taken_for_noise() -> None:
    token, place = torch.arange(40).repeat(30), torch.arange(30).repeat_interleave(40)
    hidden = random_states(40, 2)[token] + 3 * random_states(30, 3)[:, :5][place] @ random_states(5, 4)
    same, elsewhere = token[:, None] == token, place[:, None] != place

    def likeness(matrix: Tensor) -> float:
        """Mean cosine of a token at two places."""
        white = F.normalize((hidden - hidden.mean(0)) @ matrix, dim=-1)
        return float((white @ white.T)[same & elsewhere].mean())

    assert likeness(torch.eye(WIDTH)) < 0.3
    assert likeness(whitening(hidden)[1]) < 0.7
    assert likeness(whitening(hidden, token)[1]) > 0.95


def test_tokens_are_of_a_kind_where_they_and_those_before_them_are_the_same() -> None:
    parts = [[5, 1, 2, 1, 2], [9], [1, 2, 3], []]
    pairs = [(5, 1), (1, 2), (2, 1), (1, 2), (1, 2), (2, 3)]
    kinds = kinds_of(parts).tolist()
    assert [[a == b for b in kinds] for a in kinds] == [[a == b for b in pairs] for a in pairs]


@pytest.mark.usefixtures("all_unknown_subjects")
def test_what_is_missed_is_missed_in_the_form_in_which_most_questions_stay_closed() -> None:
    model = grafted()
    tokens, _ = tokens_of(model)
    asked = list(unknown_questions_asked(model.tokenizer, 4096, 1, 2))
    assert len(asked) == 10
    world = model.world
    count = missed(model, asked, tokens)
    assert model.world is world
    opened: dict[int, list[bool]] = defaultdict(list)
    for each in asked:
        taught = recall.in_taught_forms(each)
        assert torch.equal(taught.input_ids, each.forms.input_ids[: each.taught])
        model.world = recall.World(*[model.cue_queries(tokens)] * 2)
        found = find_cues(model, [taught])
        assert found is not None
        model.assign_rows({}, found.cues)
        for form, ids in enumerate(recall.up_to_answers(each.forms)[each.taught :]):
            with torch.no_grad():
                model(input_ids=torch.tensor([ids]))
            opened[form].append(any(bool(tokens[0, -1]) for tokens in model.opened.values()))
    assert count == max(each.count(False) for each in opened.values())
    assert 0 <= count < len(asked)


def test_facts_without_cues_are_read_by_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grafted()
    monkeypatch.setattr(recall, "find_cues", lambda *_: None)
    assert missed(model, list(unknown_questions_asked(model.tokenizer, 4096, 1, 1)), tokens_of(model)[0]) == 0


@pytest.mark.usefixtures("all_unknown_subjects")
def test_the_usual_whitening_stays_unless_the_other_one_misses_less_than_half_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grafted()
    tokens, parts = tokens_of(model)
    for misses, taken in (((4,), False), ((5, 2), True), ((6, 3), False), ((20, 20), False), ((40, 0), True)):
        found = iter(misses)
        monkeypatch.setattr(recall, "missed", lambda *_, found=found: next(found))
        kinds = kinds_to_whiten(model, tokens, parts, seed=0)
        assert (kinds is not None) == taken
        assert next(found, None) is None
        assert kinds is None or torch.equal(kinds, kinds_of(parts))


def test_a_graft_is_calibrated_with_the_whitening_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "missed", lambda *_: 0)
    usual = grafted()
    tokens, parts = tokens_of(usual)
    monkeypatch.setattr("memgraft.grafting.kinds_to_whiten", lambda *_, **__: None)
    assert torch.equal(grafted().layer(0).query_projection, usual.layer(0).query_projection)
    monkeypatch.setattr("memgraft.grafting.kinds_to_whiten", lambda *_, **__: kinds_of(parts))
    other = grafted().layer(0)
    assert not torch.equal(other.query_projection, usual.layer(0).query_projection)
    directions = random_directions(tokens.shape[1], other.query_projection.shape[1], torch.Generator().manual_seed(0))
    assert torch.equal(other.query_projection, whitening(tokens, kinds_of(parts))[1] @ directions)


def test_what_can_be_asked_too_little_keeps_the_usual_whitening(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grafted("gpt2", n_positions=8)
    tokens, parts = tokens_of(model)
    monkeypatch.setattr(recall, "missed", lambda *_: pytest.fail("too little can be asked"))
    assert kinds_to_whiten(model, tokens, parts, seed=0) is None
    few = list(unknown_questions_asked(model.tokenizer, 4096, 1, 1))
    monkeypatch.setattr(recall, "unknown_questions_asked", lambda *_: few)
    assert kinds_to_whiten(model, tokens, parts, seed=0) is None
    monkeypatch.setattr(recall, "FEWEST", len(few))
    monkeypatch.setattr(type(model.tokenizer), "is_fast", False)
    assert kinds_to_whiten(model, tokens, parts, seed=0) is None
