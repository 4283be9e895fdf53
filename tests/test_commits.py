"""Row changes and commits: equality, sums and ids."""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memgraft.canonical import canonical_json, parse_json
from memgraft.commits import Commit, Rows, add_rows, sum_rows, union_slots

WIDTH = 2

values = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
row_changes = st.dictionaries(st.integers(0, 20), st.tuples(values, values), max_size=8)


def rows(changes: dict[int, tuple[float, float]]) -> Rows:
    return Rows(
        torch.tensor(sorted(changes), dtype=torch.int64),
        torch.tensor([changes[slot] for slot in sorted(changes)], dtype=torch.float32).reshape(-1, WIDTH),
    )


def commit(**changed: Any) -> Commit:
    settings: dict[str, Any] = {
        "changes": {"0": rows({1: (1.0, 2.0)}), "1": rows({})},
        "message": "products",
        "recipe": {"passes": 6},
        "data_sha256": "a" * 64,
    }
    return Commit(**settings | changed)


@given(st.lists(row_changes, max_size=6))
def test_sum_is_the_fp32_sum_in_order_of_every_slot_that_was_written(changes: list[dict[int, tuple[float, float]]]) -> None:
    expected: dict[int, np.ndarray[Any, Any]] = {}
    for change in changes:
        for slot, value in change.items():
            expected[slot] = expected.get(slot, np.zeros(WIDTH, np.float32)) + np.array(value, np.float32)
    total = sum_rows([rows(change) for change in changes], WIDTH)
    assert total.slots.tolist() == sorted(expected)
    assert [row.tobytes() for row in total.values.numpy()] == [expected[slot].tobytes() for slot in sorted(expected)]


def test_sum_depends_on_the_order_so_the_order_is_part_of_the_meaning() -> None:
    parts = [rows({0: (1e8, 0.0)}), rows({0: (1.0, 0.0)}), rows({0: (-1e8, 0.0)})]
    sums = {float(sum_rows(order, WIDTH).values[0, 0]) for order in itertools.permutations(parts)}
    assert sums == {0.0, 1.0}


def test_sum_of_a_single_negative_zero_is_positive_zero() -> None:
    assert not torch.signbit(sum_rows([rows({0: (-0.0, -0.0)})], WIDTH).values).any()


def test_adding_rows_that_the_total_lacks_is_refused_and_changes_nothing() -> None:
    total = rows({1: (1.0, 1.0), 3: (3.0, 3.0)})
    with pytest.raises(ValueError, match="lacks"):
        add_rows(total, rows({1: (1.0, 1.0), 2: (1.0, 1.0)}))
    with pytest.raises(ValueError, match="lacks"):
        add_rows(rows({}), rows({0: (1.0, 1.0)}))
    assert total == rows({1: (1.0, 1.0), 3: (3.0, 3.0)})


def test_union_of_slots_is_the_same_when_it_is_merged_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [torch.randperm(50)[:9].sort().values for _ in range(30)]
    expected = torch.unique(torch.cat(parts))
    monkeypatch.setattr("memgraft.commits._MERGE_AT", 10)
    assert torch.equal(union_slots(iter(parts)), expected)
    assert union_slots([]).dtype == torch.int64


@pytest.mark.parametrize(
    ("slots", "values", "problem"),
    [
        ([0, 1], [[1.0], [2.0]], "1 wide, expected 2"),
        ([1, 1], [[1.0, 1.0], [2.0, 2.0]], "strictly increasing"),
        ([2, 1], [[1.0, 1.0], [2.0, 2.0]], "strictly increasing"),
        ([-1, 1], [[1.0, 1.0], [2.0, 2.0]], r"\[0, 9\), got -1 to 1"),
        ([1, 9], [[1.0, 1.0], [2.0, 2.0]], r"\[0, 9\), got 1 to 9"),
        ([3, 8], [[1.0, 1.0], [2.0, float("nan")]], "slot 8 are not finite"),
        ([3, 8], [[float("inf"), 1.0], [2.0, 1.0]], "slot 3 are not finite"),
    ],
)
def test_rows_that_can_not_be_of_a_table_say_why(slots: list[int], values: list[list[float]], problem: str) -> None:
    found = Rows(torch.tensor(slots), torch.tensor(values)).problem(slots=9, width=2)
    assert found is not None
    assert re.search(problem, found)


def test_rows_that_fit_a_table_have_no_problem() -> None:
    assert rows({0: (1.0, 1.0), 8: (1.0, 1.0)}).problem(slots=9, width=2) is None
    assert rows({}).problem(slots=9, width=2) is None


def test_rows_are_equal_only_bit_for_bit() -> None:
    assert rows({1: (0.0, 1.0)}) == rows({1: (0.0, 1.0)})
    assert rows({1: (0.0, 1.0)}) != rows({1: (-0.0, 1.0)})
    assert rows({1: (0.0, 1.0)}) != rows({2: (0.0, 1.0)})
    assert commit() == commit(record={"seconds": 3})
    assert commit() != commit(changes={"0": rows({1: (1.0, 2.5)}), "1": rows({})})


@pytest.mark.parametrize(
    ("slots", "values"),
    [
        (torch.zeros(1, dtype=torch.int32), torch.zeros(1, 2)),
        (torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 2)),
        (torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2).double()),
        (torch.zeros(1, dtype=torch.int64), torch.zeros(2, 2)),
        (torch.zeros(1, dtype=torch.int64), torch.zeros(1)),
    ],
)
def test_rows_of_other_dtypes_or_shapes_are_refused(slots: torch.Tensor, values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be"):
        Rows(slots, values)


def test_id_is_the_digest_of_the_documented_bytes() -> None:
    content = b'{"data_sha256":"' + b"a" * 64 + b'","message":"products","recipe":{"passes":6}}'
    content += b"0:1:2;" + struct.pack("<q2f", 1, 1.0, 2.0) + b"1:0:2;"
    assert commit().id == hashlib.sha256(content).hexdigest()


def test_id_depends_on_all_content_but_not_on_the_record_or_the_memory_layout() -> None:
    ids = {
        commit().id,
        commit(message="people").id,
        commit(recipe={"passes": 5}).id,
        commit(data_sha256="b" * 64).id,
        commit(changes={"0": rows({1: (1.0, 2.5)}), "1": rows({})}).id,
        commit(changes={"0": rows({2: (1.0, 2.0)}), "1": rows({})}).id,
        commit(changes={"1": rows({1: (1.0, 2.0)}), "0": rows({})}).id,
        commit(changes={"0": rows({1: (1.0, 2.0)})}).id,
    }
    assert len(ids) == 8
    two = rows({1: (1.0, 2.0), 4: (3.0, 4.0)})
    strided = Rows(torch.tensor([1, 0, 4])[::2], torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T)
    assert not strided.slots.is_contiguous()
    assert not strided.values.is_contiguous()
    assert commit(changes={"1": rows({}), "0": two}, record={"seconds": 1}).id == commit(changes={"0": strided, "1": rows({})}).id


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_canonical_json_reads_back_as_it_was_and_then_has_the_same_bytes(value: Any) -> None:
    data = canonical_json(value)
    assert parse_json(data) == value
    assert canonical_json(parse_json(data)) == data


@pytest.mark.parametrize("value", [{1: 2}, [{None: 1}], float("nan"), [float("inf")], "\ud800", {"a": {1, 2}}, torch.float32])
def test_canonical_json_refuses_what_would_not_read_back(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical_json(value)


def test_canonical_json_refuses_a_value_that_contains_itself() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="contains itself"):
        canonical_json(value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "Infinity is not JSON"),
        (b'{"a"', r"not JSON: .* \(line 1, column 5\)"),
        (b"", "not JSON"),
        (b'"\xff"', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5_000, "not JSON|digits"),
        (b'{"a": -1e999}', "the number -1e999 is too large"),
        (rb'["\ud83d\ude00", "\uDC00"]', "half a surrogate pair"),
    ],
)
def test_json_with_no_or_two_meanings_is_refused_in_one_line(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        parse_json(data)
    assert "\n" not in str(error.value)
