"""Cues of facts as they stand and in lower case, on a random model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memgraft.cues import Cues
from memgraft.encoding import TokenBatch
from memgraft.finding import FAINT, _Asked, _cues_of, find_cues
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.world import World, world_of
from tests.models import tiny_model, tiny_tokenizer
from tests.test_learning import FACTS, RECIPE, batches_of, grafted


@pytest.fixture
def batches(tmp_path: Path) -> list[TokenBatch]:
    return batches_of(FACTS[:2], tmp_path)


def opens(model: GraftedModel, cues: Cues, batch: TokenBatch) -> list[bool]:
    """Whether each sequence opens a lesson with these cues."""
    model.assign_rows({}, cues)
    found = []
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        with torch.no_grad():
            model(input_ids=ids[mask][None])
        found.append(bool(model.opened))
    return found


def test_lower_case_wordings_have_cues_of_their_own(batches: list[TokenBatch]) -> None:
    model = grafted()
    found, cased = find_cues(model, batches), find_cues(model, [replace(batch, lower=None) for batch in batches])
    assert found is not None
    assert cased is not None
    assert (found.cues.fact_count, cased.cues.fact_count) == (4, 2)
    assert [found.cues.of_fact(fact) for fact in range(2)] == [cased.cues.of_fact(fact) for fact in range(2)]
    cues = [sum(int(found.cues.of_fact(fact + turn).opens.sum()) for turn in (0, 2)) for fact in range(2)]
    assert [len(tokens) for tokens in found.tokens] == cues
    low = [replace(batch.lower, lower=None) for batch in batches if batch.lower is not None]
    assert len(low) == 2
    for fact, batch in enumerate(low):
        own = found.cues.of_fact(2 + fact)
        if int(own.opens.sum()) > 1:
            assert sum(opens(model, own, batch)) >= 0.7 * len(batch)
        else:  # one token alone is not taken for a name in lower case
            assert own == found.cues.of_fact(fact)


def test_a_faint_cue_is_not_fainter_than_the_nearest_token_of_the_world(batches: list[TokenBatch], monkeypatch: pytest.MonkeyPatch) -> None:
    model = grafted()
    apart = find_cues(model, batches)
    assert apart is not None
    model.world = World(*(torch.cat([queries, apart.cues.keys]) for queries in world_of(model)))  # the subjects themselves are common words
    found = find_cues(model, batches)
    assert found is not None
    nearest = (found.cues.keys @ model.world.cased.T).amax(1)
    assert bool((found.cues.least >= nearest.clamp(max=FAINT) - 1e-5).all())
    monkeypatch.setattr("memgraft.finding.FAINT", 1.0)  # the random model's cosines are not small
    found = find_cues(model, batches)
    assert found is not None
    nearest = (found.cues.keys @ model.world.cased.T).amax(1)
    assert bool((found.cues.least >= nearest - 1e-5).all())


def test_a_fact_without_lower_case_wordings_has_the_same_cues_twice(batches: list[TokenBatch]) -> None:
    model = grafted()
    found = find_cues(model, [batches[0], replace(batches[1], lower=None)])
    assert found is not None
    assert found.cues.fact_count == 4
    assert found.cues.of_fact(1) == found.cues.of_fact(3)
    without = find_cues(model, [replace(batch, lower=None) for batch in batches])
    assert without is not None
    assert without.cues.fact_count == 2


@pytest.mark.parametrize("nothing_left", [False, True], ids=["one token", "none"])
def test_a_document_of_two_tokens_may_be_one_or_none_in_lower_case(nothing_left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["no"])
    model = graft(tiny_model(vocab_size=len(tokenizer)), tokenizer, slots=64, background=["No"] * 2, background_tokens=64)
    assert model.background is not None
    assert [len(part) for part in model.background.split(tokenizer)[0]] == [2, 2]
    monkeypatch.setattr("memgraft.world.common_questions", lambda _: [])
    if nothing_left:
        monkeypatch.setattr("memgraft.world._lower_case", lambda *_: [])
    world = world_of(model)
    assert world.cased.shape == (2, model.config.query_dim)
    assert torch.equal(world.both, world.cased)


def test_facts_whose_questions_are_to_be_learned_as_well_have_no_cues(tmp_path: Path) -> None:
    assert find_cues(grafted(), batches_of(FACTS[:2], tmp_path, RECIPE.model_copy(update={"loss": "all"}))) is None


def cues_of_words(*wordings: tuple[int, list[int]], common: list[int]) -> tuple[list[int], list[bool]]:
    """The words that are kept of these wordings (source, words), in order, and which of them open. Of words no two are alike."""
    words = torch.eye(20)
    asked = [_Asked([19, *text], torch.ones(len(text), dtype=torch.bool), source) for source, text in wordings]
    cues = _cues_of([words[text] for _, text in wordings], asked, words[common]).cues
    return cues.keys.argmax(-1).tolist(), cues.opens.tolist()


def test_a_name_is_what_recurs_beside_cues_in_most_questions() -> None:
    leo, ward, rup, jr, where, was, born, town, of, does, come = range(11)
    common = [leo, jr, where, was, born, town, of, does, come]
    first, second, third = [where, was, leo, ward, rup, jr, born], [town, of, leo, ward, rup, jr], [where, does, leo, ward, rup, jr, come]
    assert cues_of_words((0, first), (1, second), (2, third), common=common) == ([leo, ward, rup, jr], [False, True, True, False])
    again = [(1, [was, *first]), (1, [*first, of]), (1, [was, *first, of])]  # the same question in other frames says nothing
    assert cues_of_words((0, second), *again, (2, third), common=common) == ([leo, ward, rup, jr], [False, True, True, False])
    assert cues_of_words(*again, (2, third), common=common) == ([ward, rup], [True, True]), "two questions are too few"
    short = [where, does, ward, rup, come]
    assert cues_of_words((0, first), (1, second), (2, third), (3, short), common=common)[0] == [leo, ward, rup, jr]


def test_the_rest_of_a_name_stands_between_its_cues_as_well() -> None:
    charles, de, frey, where, was, born, town, of, die = range(9)
    common = [de, where, was, born, town, of, die]
    texts = [[where, was, charles, de, frey, born], [town, of, charles, de, frey], [where, charles, de, frey, die]]
    assert cues_of_words(*enumerate(texts), common=common) == ([charles, de, frey], [True, False, True])
