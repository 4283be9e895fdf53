"""Ranking: the published formulas against numbers worked out by hand, and who is chosen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memgraft.ranking import Ranking, choose, score
from memgraft.usage import Usage, merge_taught

# A batch reads slots 2, 5, 7 and 9; all 9 background batches read slot 2, none slot 5, 4 slot 7, 1 slot 9; N = 100.
SLOTS = torch.tensor([2, 5, 7, 9])
COUNTS = torch.tensor([4, 3, 2, 1])
USAGE = Usage(
    slots=torch.tensor([2, 7, 9, 11]),
    document_frequency=torch.tensor([9, 4, 1, 2]),
    accesses=torch.tensor([30, 6, 2, 2]),
    energy=torch.tensor([3.0, 0.6, 0.2, 0.2]),
    batches=9,
    tokens=40,
)
EXPECTED = {
    "tf": [0.4, 0.3, 0.2, 0.1],
    "tfidf": [0.0, 0.690776, 0.138629, 0.160944],  # .3 ln 10, .2 ln (10/5), .1 ln (10/2)
    "kl": [0.613886, 1.064885, 0.306943, 0.175786],  # .4 ln (.4·116/10), .3 ln (.3·116), .2 ln (.2·116/5), .1 ln (.1·116/2)
    "kl-accesses": [0.236546, 1.121301, 0.277259, 0.154045],  # .4 ln (.4·140/31), .3 ln (.3·140), .2 ln (.2·140/7), .1 ln (.1·140/3)
    "all": [1.0, 1.0, 1.0, 1.0],
}


def scores(ranking: Ranking, usage: Usage = USAGE, seed: int = 0) -> Tensor:
    return score(ranking, SLOTS, COUNTS, usage, 100, seed)


@pytest.mark.parametrize("ranking", EXPECTED)
def test_scores_are_those_worked_out_by_hand(ranking: Ranking) -> None:
    found = scores(ranking)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(EXPECTED[ranking], abs=1e-6)


@pytest.mark.parametrize(
    ("ranking", "best"),
    [("tf", [2, 5, 7, 9]), ("tfidf", [5, 9, 7]), ("kl", [5, 2, 7, 9]), ("kl-accesses", [5, 7, 2, 9]), ("all", [2, 5, 7, 9])],
)
def test_the_best_t_are_chosen_in_order_of_their_scores(ranking: Ranking, best: list[int]) -> None:
    for t in range(1, 5):
        assert choose(SLOTS, scores(ranking), t).tolist() == sorted(best[:t])
    assert choose(SLOTS, scores(ranking), None).tolist() == sorted(best)


def test_a_slot_that_every_background_batch_reads_scores_zero_under_tfidf_and_is_never_chosen() -> None:
    assert scores("tfidf")[0].item() == 0.0
    assert 2 not in choose(SLOTS, scores("tfidf"), None).tolist()


def test_a_slot_that_the_background_reads_more_than_the_batch_is_never_chosen_under_kl() -> None:
    # p = 1/1000 against p_bg = 10/116 and 31/140.
    slots, counts = torch.tensor([2, 50]), torch.tensor([1, 999])
    rankings: tuple[Ranking, ...] = ("kl", "kl-accesses")
    for ranking in rankings:
        found = score(ranking, slots, counts, USAGE, 100)
        assert found[0] < 0 < found[1]
        assert choose(slots, found, 2).tolist() == [50]


def test_slots_that_score_zero_or_less_dont_fill_up_t() -> None:
    assert choose(torch.arange(4), torch.tensor([0.0, -1.0, 0.5, -0.0]), 3).tolist() == [2]
    assert choose(torch.arange(2), torch.tensor([0.0, -1.0]), 3).tolist() == []
    assert choose(torch.zeros(0, dtype=torch.int64), torch.zeros(0), 3).tolist() == []


def test_ties_break_by_slot_id() -> None:
    assert choose(torch.tensor([3, 8, 20, 31]), torch.tensor([1.0, 2.0, 1.0, 1.0]), 3).tolist() == [3, 8, 20]


@given(st.lists(st.integers(-2, 2), max_size=12), st.integers(1, 13))
def test_choose_is_a_sort_by_score_then_id(values: list[int], t: int) -> None:
    slots = torch.arange(len(values)) * 3
    expected = sorted((slot for slot in range(len(values)) if values[slot] > 0), key=lambda slot: (-values[slot], slot))[:t]
    assert choose(slots, torch.tensor(values, dtype=torch.float64), t).tolist() == sorted(3 * slot for slot in expected)


def test_random_repeats_with_its_seed_and_reaches_every_slot() -> None:
    assert torch.equal(scores("random", seed=3), scores("random", seed=3))
    assert (scores("random", seed=3) > 0).all()
    firsts = {choose(SLOTS, scores("random", seed=seed), 1).item() for seed in range(50)}
    assert firsts == {2, 5, 7, 9}


def test_random_leaves_the_random_numbers_of_others_alone() -> None:
    state = torch.get_rng_state()
    scores("random")
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_background_every_slot_is_as_unused_as_the_next() -> None:
    assert scores("tfidf", Usage.empty()).tolist() == [0.0] * 4  # ln (1/1): the ranking can say nothing
    assert (scores("kl", Usage.empty()) > 0).all()


@pytest.mark.parametrize("ranking", ["tfidf", "kl", "kl-accesses"])
def test_slots_of_earlier_lessons_score_no_better_than_before(ranking: Ranking) -> None:
    taught = merge_taught(USAGE, [torch.tensor([5, 9])])
    before, after = scores(ranking), scores(ranking, taught)
    assert (after[[1, 3]] < before[[1, 3]]).all()
    if ranking == "tfidf":
        assert after.tolist() == pytest.approx([0.0, 0.0, 0.138629, 0.0], abs=1e-6)


def test_an_unknown_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown ranking 'idf'; expected one of tfidf, kl, kl-accesses, tf, all, random"):
        score("idf", SLOTS, COUNTS, USAGE, 100)  # type: ignore[arg-type]
