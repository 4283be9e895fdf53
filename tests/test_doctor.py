"""The doctor's numbers against known answers."""

from __future__ import annotations

import pytest
import torch

from memgraft.config import MemoryConfig
from memgraft.doctor import dtype_hint, machine, table_health, usage_age, versions
from memgraft.usage import Usage


def usage(accesses: dict[int, int]) -> Usage:
    slots, counts = torch.tensor(sorted(accesses)), torch.tensor([accesses[slot] for slot in sorted(accesses)])
    return Usage(slots, torch.ones_like(counts), counts, torch.ones(len(counts)), batches=5, tokens=50)


def test_hubs_are_the_most_read_hundredth_of_all_slots() -> None:
    # 400 slots: 4 hubs. 30 + 20 + 10 + 5 of 70 accesses.
    health = table_health(usage({0: 10, 7: 30, 8: 5, 20: 3, 30: 2, 399: 20}), torch.tensor([7, 9, 399]), 400)
    assert health["hub_accesses"] == pytest.approx(65 / 70)
    assert health["slots_used"] == 6 / 400
    assert health["rows_written"] == 3
    assert health["rows_also_read_by_background"] == pytest.approx(2 / 3)
    assert (health["background_tokens"], health["background_documents"]) == (50, 5)


def test_a_small_table_has_one_hub_and_an_empty_usage_none() -> None:
    assert table_health(usage({1: 3, 2: 1}), torch.tensor([], dtype=torch.int64), 16)["hub_accesses"] == 0.75
    health = table_health(Usage.empty(), torch.tensor([1]), 16)
    assert (health["hub_accesses"], health["slots_used"], health["rows_also_read_by_background"]) == (0.0, 0.0, 0.0)


def test_usage_ages_only_where_lessons_move_what_a_memory_layer_reads() -> None:
    one = MemoryConfig(layers=(3,), hidden_size=8, slots=16, top_k=4)
    two = one.model_copy(update={"layers": (3, 9, 12)})
    assert "as it is now" in usage_age(two, 0)
    assert "still exact" in usage_age(one, 4)
    assert "snapshot" not in usage_age(one, 4)
    assert usage_age(two, 4).endswith("4 lessons ago; still exact for the memory layer at block 3, a snapshot for block 9, 12")


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [
        (1.0, 3.0, "bfloat16 takes 3.0 times as long"),
        (3.0, 1.0, "bfloat16 is 3.0 times as fast as in float32"),
        (1.0, 1.1, "about as fast"),
    ],
)
def test_the_faster_dtype_is_recommended(float32: float, bfloat16: float, expected: str) -> None:
    assert expected in dtype_hint({"float32": float32, "bfloat16": bfloat16})


def test_versions_and_machine_are_reported() -> None:
    assert versions()["torch"] == torch.__version__
    assert machine()["torch_threads"] == torch.get_num_threads()
    assert all(value > 0 for value in machine()["product_ms"].values())
