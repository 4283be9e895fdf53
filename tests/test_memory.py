"""The memory layer against its dense reference: addresses under ties, reads and all their gradients, the virtual table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memgraft.commits import Rows
from memgraft.config import MemoryConfig
from memgraft.memory import Address, MemoryLayer, ValueTable, candidate_pairs, product_key_top_k, soft_threshold
from memgraft.reference import brute_force_top_k, dense_forward, dense_read
from tests.models import dense, random_rows

WIDTH = 6


@st.composite
def half_scores(draw: st.DrawFn, numbers: st.SearchStrategy[float]) -> tuple[Tensor, Tensor, int]:
    n = draw(st.integers(1, 6))
    tokens = draw(st.integers(1, 3))
    scores = [
        torch.tensor(draw(st.lists(numbers, min_size=tokens * n, max_size=tokens * n)), dtype=torch.float32).view(tokens, n)
        for _ in range(2)
    ]
    return scores[0], scores[1], draw(st.integers(1, n))


@st.composite
def addresses(draw: st.DrawFn, slots: int = 16) -> Address:
    """Few slots, so that heads and tokens read the same ones."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    ids = torch.rand(*shape[:2], slots, generator=generator).argsort(-1)[..., : shape[2]].contiguous()
    return Address(ids, torch.rand(shape, generator=generator))


def layer(*, rows: Rows | None = None, **settings: object) -> MemoryLayer:
    config = MemoryConfig.model_validate(
        {
            "layers": (0,),
            "hidden_size": WIDTH,
            "slots": 64,
            "top_k": 5,
            "heads": 3,
            "key_dim": 4,
            "softmax_scale": 3.0,
            "threshold": 0.0,
            **settings,
        }
    )
    memory = MemoryLayer(config, ValueTable(rows if rows is not None else Rows.empty(WIDTH)))
    generator = torch.Generator().manual_seed(1)
    for buffer in memory.buffers(recurse=False):
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return memory


def hidden_states(tokens: int = 7, *, seed: int = 2) -> Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


@given(half_scores(st.integers(-2, 2).map(float)) | half_scores(st.floats(-10, 10, width=32)))
def test_product_key_top_k_is_the_brute_force_over_all_slots_ties_included(case: tuple[Tensor, Tensor, int]) -> None:
    scores_1, scores_2, top_k = case
    scores, slots = product_key_top_k(scores_1, scores_2, top_k)
    expected_scores, expected_slots = brute_force_top_k(scores_1, scores_2, top_k)
    assert torch.equal(slots, expected_slots)
    assert torch.equal(scores, expected_scores)


def test_ties_break_by_the_ranks_of_the_halves_the_first_half_first() -> None:
    # All four sums of the best two of each half are 1 + 1; the better half ranks are those with the lower sub-key.
    scores, slots = product_key_top_k(torch.tensor([[0.0, 1, 1]]), torch.tensor([[1.0, 0, 1]]), 3)
    assert scores.tolist() == [[2.0, 2.0, 2.0]]
    assert slots.tolist() == [[1 * 3 + 0, 1 * 3 + 2, 2 * 3 + 0]]


def test_only_the_pairs_of_ranks_that_can_win_are_tried() -> None:
    assert len(candidate_pairs(32)) == 119
    assert list(candidate_pairs(4)) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0), (3, 0)]


@given(addresses(), st.sets(st.integers(0, 15)), st.integers(0, 2**16))
def test_read_and_its_gradients_are_those_of_a_dense_table(address: Address, written: set[int], seed: int) -> None:
    rows = random_rows(written, seed=seed, width=WIDTH)
    out_gradient = torch.randn(len(address.slots), WIDTH, generator=torch.Generator().manual_seed(seed))

    table = ValueTable(rows)
    table.values.requires_grad_(True)
    weights = address.weights.clone().requires_grad_(True)
    read = table.read(Address(address.slots, weights))

    dense_table = dense(rows, 16).requires_grad_(True)
    dense_weights = address.weights.clone().requires_grad_(True)
    expected = dense_read(Address(address.slots, dense_weights), dense_table)

    torch.testing.assert_close(read, expected)
    expected.backward(out_gradient)
    assert dense_table.grad is not None
    if written:
        read.backward(out_gradient)
        torch.testing.assert_close(weights.grad, dense_weights.grad)
        torch.testing.assert_close(table.values.grad, dense_table.grad[rows.slots])
    else:
        assert not dense_weights.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("gate", ["none", "swilu"])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("written", [range(64), range(0, 64, 3), [5]])
def test_forward_is_the_dense_forward(gate: str, qk_norm: bool, written: list[int]) -> None:
    rows = random_rows(written, width=WIDTH)
    memory = layer(rows=rows, gate=gate, qk_norm=qk_norm)
    x = hidden_states()
    expected = dense_forward(memory, x, dense(rows, 64))
    torch.testing.assert_close(memory(x), expected)
    assert len(list(written)) == 1 or expected.abs().sum() > 0
    torch.testing.assert_close(memory(x.view(1, 7, 1, WIDTH)), expected.view(1, 7, 1, WIDTH))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_a_threshold_shortens_reads_as_in_the_dense_forward(threshold: float) -> None:
    rows = random_rows(range(0, 64, 3), width=WIDTH)
    memory = layer(rows=rows, threshold=threshold)
    torch.testing.assert_close(memory(hidden_states()), dense_forward(memory, hidden_states(), dense(rows, 64)))


@given(st.floats(0.01, 2), st.integers(0, 2**16))
def test_a_read_loses_the_threshold_of_its_length_or_all_of_it(threshold: float, seed: int) -> None:
    read = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0, 1, 9)[:, None]
    short = soft_threshold(read, threshold)
    expected = (read.norm(dim=-1) - threshold).clamp_min(0)
    torch.testing.assert_close(short.norm(dim=-1), expected)
    assert torch.equal(short[expected == 0], torch.zeros_like(short[expected == 0]))
    assert soft_threshold(read, 0.0) is read


def test_gradients_of_forward_in_the_hidden_states_are_those_of_the_dense_forward() -> None:
    rows = random_rows(range(0, 64, 2), width=WIDTH)
    memory = layer(rows=rows, gate="swilu")
    x, x_dense = hidden_states().requires_grad_(True), hidden_states().requires_grad_(True)
    out_gradient = hidden_states(seed=9)
    memory(x).backward(out_gradient)
    dense_forward(memory, x_dense, dense(rows, 64)).backward(out_gradient)
    torch.testing.assert_close(x.grad, x_dense.grad)


def test_a_bf16_model_gets_bf16_back_from_an_fp32_read() -> None:
    rows = random_rows(range(64), width=WIDTH)
    memory, x = layer(rows=rows), hidden_states().bfloat16()
    out = memory(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, memory(x.float()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_no_bit_of_addresses_and_reads(dtype: torch.dtype) -> None:
    memory, x = layer(rows=random_rows(range(64), width=WIDTH), gate="swilu"), hidden_states().to(dtype)
    queries, address, out = memory.queries(x), memory.address(x), memory(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x.float() @ memory.query_projection).dtype == torch.bfloat16
        assert torch.equal(memory.queries(x), queries)
        assert all(map(torch.equal, memory.address(x), address))
        assert torch.equal(memory(x), out)


@pytest.mark.parametrize("gate", ["none", "swilu"])
@pytest.mark.parametrize("rows", [Rows.empty(WIDTH), Rows(torch.arange(64), torch.zeros(64, WIDTH))], ids=["no rows", "zero rows"])
def test_without_written_rows_the_memory_adds_exact_zeros(rows: Rows, gate: str) -> None:
    out = layer(rows=rows, gate=gate)(hidden_states())
    assert torch.equal(out, torch.zeros(7, WIDTH))


def test_a_tokens_weights_sum_to_one_per_head_over_the_root_of_the_heads() -> None:
    address = layer().address(hidden_states())
    assert address.slots.shape == address.weights.shape == (7, 3, 5)
    torch.testing.assert_close(address.weights.sum(-1), torch.full((7, 3), 3**-0.5))
    assert (address.weights[..., 1:] <= address.weights[..., :-1]).all()
    assert all(len(set(head)) == 5 for token in address.slots.tolist() for head in token)


def test_half_queries_have_unit_length_under_qk_norm_only() -> None:
    x = hidden_states()
    torch.testing.assert_close(layer(qk_norm=True).queries(x).norm(dim=-1), torch.ones(7, 3, 2))
    flat = (x - layer().query_mean) @ layer().query_projection
    torch.testing.assert_close(layer(qk_norm=False).queries(x), flat.view(7, 3, 2, 2))


def test_who_listens_gets_the_read_before_scale_and_gate_with_a_gradient_even_where_nothing_is_written() -> None:
    memory = layer(gate="swilu")
    heard: list[tuple[Address, Tensor]] = []
    memory.on_read = lambda address, y: heard.append((address, y))
    out = memory(hidden_states())
    ((address, y),) = heard
    assert torch.equal(address.slots, memory.address(hidden_states()).slots)
    assert y.shape == (7, WIDTH)
    out.sum().backward()
    assert y.grad is not None
    assert y.grad.abs().sum() > 0
    with torch.no_grad():
        memory(hidden_states())
    assert not heard[1][1].requires_grad


class TestValueTable:
    def test_new_rows_are_zero_and_the_others_keep_their_bits(self) -> None:
        before = random_rows([2, 9, 40], width=WIDTH)
        table = ValueTable(before)
        index = table.allocate(torch.tensor([0, 9, 63]))
        assert table.rows.slots.tolist() == [0, 2, 9, 40, 63]
        assert index.tolist() == [0, 2, 4]
        assert Rows(before.slots, table.values[[1, 2, 3]]) == before
        assert not table.values[[0, 4]].any()

    def test_allocating_known_rows_changes_nothing(self) -> None:
        table = ValueTable(random_rows([2, 9], width=WIDTH))
        before = table.rows
        assert table.allocate(torch.tensor([9])).tolist() == [1]
        assert table.rows == before

    def test_find_tells_written_rows_from_missing_ones(self) -> None:
        index, written = ValueTable(random_rows([2, 9], width=WIDTH)).find(torch.tensor([[0, 2], [9, 63]]))
        assert written.tolist() == [[False, True], [True, False]]
        assert index[written].tolist() == [0, 1]
        assert ValueTable(Rows.empty(WIDTH)).find(torch.tensor([3]))[1].tolist() == [False]

    def test_rows_are_a_copy_and_assigned_rows_are_copied(self) -> None:
        given = random_rows([1], width=WIDTH)
        table = ValueTable(Rows.empty(WIDTH))
        table.assign(given)
        table.values += 1
        assert given == random_rows([1], width=WIDTH)
        table.rows.values.zero_()
        assert table.values.any()

    @given(addresses(), st.sets(st.integers(0, 15), min_size=1))
    def test_rows_that_an_address_does_not_hold_play_no_part_even_if_not_finite(self, address: Address, written: set[int]) -> None:
        rows = random_rows(written, width=WIDTH)
        poisoned = Rows(rows.slots, rows.values.clone())
        poisoned.values[~torch.isin(rows.slots, address.slots)] = torch.nan
        assert torch.equal(ValueTable(poisoned).read(address), ValueTable(rows).read(address))


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"slots": 1000}, "square number, got 1000; the nearest is 1024"),
            ({"slots": 16, "top_k": 5}, "top_k = 5 exceeds the 4 sub-keys"),
            ({"key_dim": 5}, "even"),
            ({"layers": ()}, "layers must be"),
            ({"layers": (3, 1)}, "layers must be"),
            ({"layers": (1, 1)}, "layers must be"),
            ({"layers": (-1,)}, "layers must be"),
            ({"head": 2}, "Extra inputs"),
        ],
    )
    def test_a_configuration_that_makes_no_sense_is_refused(self, settings: dict[str, object], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            MemoryConfig.model_validate({"layers": (0,), "hidden_size": 8, **settings})

    def test_tables_are_shared_or_one_a_layer(self) -> None:
        separate, shared = (MemoryConfig(layers=(1, 4), hidden_size=8, shared_values=shared) for shared in (False, True))
        assert (separate.tables, shared.tables) == (("0", "1"), ("0",))
        assert [separate.table_of(i) for i in range(2)] == ["0", "1"]
        assert [shared.table_of(i) for i in range(2)] == ["0", "0"]
