"""Background usage: what is counted, worked out by hand, and how earlier lessons count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memgraft.memory import Address
from memgraft.usage import Usage, UsageCounter, count_accesses, merge_taught


def address(slots: list[list[list[int]]], weights: list[list[list[float]]] | None = None) -> Address:
    ids = torch.tensor(slots)
    return Address(ids, torch.tensor(weights) if weights else torch.full(ids.shape, 0.5))


# Two documents of two and one token, one head, two slots a token.
FIRST = address([[[7, 3]], [[3, 1]]], [[[0.5, 0.25]], [[1.0, 0.125]]])
SECOND = address([[[3, 9]]], [[[0.5, 0.5]]])


def counted(*documents: Address) -> Usage:
    counter = UsageCounter()
    for number, document in enumerate(documents):
        counter.add(document, number)
    return counter.result()


def test_usage_is_that_worked_out_by_hand() -> None:
    usage = counted(FIRST, SECOND)
    assert usage.slots.tolist() == [1, 3, 7, 9]
    assert usage.document_frequency.tolist() == [1, 2, 1, 1]
    assert usage.accesses.tolist() == [1, 3, 1, 1]
    assert usage.energy.tolist() == [0.125**2, 0.25**2 + 1 + 0.5**2, 0.5**2, 0.5**2]
    assert (usage.batches, usage.tokens) == (2, 3)


def test_usage_of_any_slot_can_be_asked_for_and_is_zero_where_none_was_counted() -> None:
    usage, slots = counted(FIRST, SECOND), torch.tensor([0, 3, 8, 9, 50])
    assert usage.document_frequency_of(slots).tolist() == [0, 2, 0, 1, 0]
    assert usage.accesses_of(slots).tolist() == [0, 3, 0, 1, 0]
    assert usage.load_of(slots, 30).tolist() == pytest.approx([0, 13.125, 0, 2.5, 0])  # Σ weight² · 30 slots / 3 tokens


def test_no_background_means_no_usage() -> None:
    usage, slots = counted(), torch.tensor([0, 3])
    assert (len(usage.slots), usage.batches, usage.tokens) == (0, 0, 0)
    for answer in (usage.document_frequency_of(slots), usage.accesses_of(slots), usage.load_of(slots, 30)):
        assert answer.tolist() == [0, 0]


def test_layers_that_share_a_table_count_a_document_once() -> None:
    counter = UsageCounter()
    counter.add(FIRST, 0)
    counter.add(SECOND, 1)
    counter.add(SECOND, 0)
    usage = counter.result()
    assert usage.batches == 2
    assert usage.document_frequency.tolist() == [1, 2, 1, 2]
    assert usage.accesses.tolist() == [1, 4, 1, 2]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_counts_are_those_of_counting_one_by_one(documents: list[list[int]]) -> None:
    usage = counted(*(address([[[slot]] for slot in document]) for document in documents))
    for slot in range(10):
        at = torch.tensor([slot])
        assert usage.document_frequency_of(at).item() == sum(slot in document for document in documents)
        assert usage.accesses_of(at).item() == sum(document.count(slot) for document in documents)
    assert usage.slots.tolist() == sorted({slot for document in documents for slot in document})


def test_load_does_not_depend_on_the_size_of_the_background() -> None:
    slots = torch.tensor([1, 3, 7, 9, 11])
    once, twice = counted(FIRST, SECOND), counted(FIRST, SECOND, FIRST, SECOND)
    torch.testing.assert_close(once.load_of(slots, 64), twice.load_of(slots, 64))
    assert once.load_of(slots, 64)[1] > 0


def test_load_does_not_depend_on_the_number_of_slots_where_reads_spread_evenly() -> None:
    def load(slots: int) -> Tensor:
        usage = counted(address([[[slot]] for slot in range(slots)]))
        return usage.load_of(torch.arange(slots), slots)

    assert load(8).tolist() == [0.25] * 8  # the weight² of each read
    assert load(32).tolist() == [0.25] * 32


def test_usage_survives_its_tensors() -> None:
    usage = counted(FIRST, SECOND)
    again = Usage.from_tensors({**usage.tensors("0"), **counted(SECOND).tensors("1")}, "0")
    assert (again.batches, again.tokens) == (2, 3)
    for name, tensor in usage.tensors("0").items():
        assert torch.equal(again.tensors("0")[name], tensor)


def test_accesses_are_counted_in_any_shape() -> None:
    slots, counts = count_accesses(torch.tensor([[[5, 1], [5, 2]], [[1, 5], [7, 7]]]))
    assert (slots.tolist(), counts.tolist()) == ([1, 2, 5, 7], [2, 1, 3, 2])


class TestEarlierLessons:
    def test_count_as_used_by_every_background_batch_and_as_the_most_used_slot(self) -> None:
        before = counted(FIRST, SECOND)
        merged = merge_taught(before, [torch.tensor([1, 20]), torch.tensor([20, 40])])
        assert merged.slots.tolist() == [1, 3, 7, 9, 20, 40]
        assert merged.document_frequency.tolist() == [2, 2, 1, 1, 2, 2]
        assert merged.accesses.tolist() == [3, 3, 1, 1, 3, 3]
        assert merged.energy.tolist() == [1.3125, 1.3125, 0.25, 0.25, 1.3125, 1.3125]
        assert (merged.batches, merged.tokens) == (2, 3)

    def test_leave_the_background_usage_as_it_was(self) -> None:
        before = counted(FIRST, SECOND)
        tensors = {name: tensor.clone() for name, tensor in before.tensors("0").items()}
        merge_taught(before, [torch.tensor([1, 3, 20])])
        assert all(torch.equal(before.tensors("0")[name], tensor) for name, tensor in tensors.items())

    def test_change_nothing_where_there_are_none(self) -> None:
        usage = counted(FIRST)
        assert merge_taught(usage, []) is usage

    def test_are_known_without_a_background_too(self) -> None:
        merged = merge_taught(Usage.empty(), [torch.tensor([4])])
        assert merged.slots.tolist() == [4]
        assert merged.document_frequency.tolist() == [0]
