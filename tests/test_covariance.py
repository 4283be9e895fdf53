"""The covariance of what the background reads, against dense matrices and against the loads."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memgraft.background import Background
from memgraft.commits import Rows
from memgraft.covariance import BackgroundReads, Reads, background_reads, common_questions
from memgraft.grafted import GraftedModel
from memgraft.grafting import count_usage
from memgraft.memory import Address
from memgraft.teaching import Recipe, teach
from memgraft.usage import merge_taught
from memgraft.wordings import load_pool
from memgraft.writers import LeastInterference
from tests.models import random_batch, tiny_graft, tiny_tokenizer

SLOTS = 20
CHAT = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"


def random_addresses(documents: int, seed: int, heads: int = 2) -> list[Address]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in range(1, documents + 1):
        slots = torch.rand(length, heads, SLOTS, generator=generator).argsort(-1)[..., :3]
        found.append(Address(slots, torch.rand(length, heads, 3, generator=generator).softmax(-1)))
    return found


def dense_reads(address: Address) -> Tensor:
    """(T, N): each token's weights, those of a slot that several heads read added."""
    matrix = torch.zeros(len(address.slots), SLOTS)
    for token, (slots, weights) in enumerate(zip(address.slots.flatten(1).tolist(), address.weights.flatten(1).tolist(), strict=True)):
        for slot, weight in zip(slots, weights, strict=True):
            matrix[token, slot] += weight
    return matrix


@given(documents=st.integers(1, 5), chosen=st.sets(st.integers(0, SLOTS - 1), max_size=SLOTS), seed=st.integers(0, 100))
def test_is_that_of_the_dense_reads(documents: int, chosen: set[int], seed: int) -> None:
    addresses, slots = random_addresses(documents, seed), torch.tensor(sorted(chosen), dtype=torch.int64)
    reads = torch.cat([dense_reads(address) for address in addresses])[:, slots]
    found = Reads(addresses, SLOTS).covariance_of(slots)
    assert (found.shape, found.dtype) == ((len(slots), len(slots)), torch.float32)
    torch.testing.assert_close(found, reads.T @ reads * SLOTS / len(reads))


def with_background(**config: object) -> GraftedModel:
    """A tiny graft that counted its usage on a text."""
    model = tiny_graft(**config)
    model.background = Background(("The lamp is lit at dusk. " * 12, "Boats come in at noon. " * 9), "texts", 0, 400, 64)
    count_usage(model, seed=0)
    return model


def test_its_diagonal_is_the_load_of_each_slot() -> None:
    for config in ({"heads": 1}, {"heads": 1, "layers": (0, 1)}, {"heads": 1, "layers": (0, 1), "shared_values": True}):
        model = with_background(**config)
        for name, reads in background_reads(model).items():
            slots = torch.arange(model.config.slots)
            load = model.usage[name].load_of(slots, model.config.slots)
            assert load.any()
            torch.testing.assert_close(reads.text.covariance_of(slots).diagonal(), load)


def test_common_questions_are_spared_as_much_as_the_background() -> None:
    model = with_background()
    (reads,) = background_reads(model).values()
    slots = torch.arange(model.config.slots)
    text, questions = reads.text.covariance_of(slots), reads.questions.covariance_of(slots)
    assert torch.equal(reads.covariance_of(slots), text + questions)
    assert questions.trace().item() == pytest.approx(text.trace().item(), rel=0.3)  # however many tokens each has


def test_common_questions_come_in_the_forms_that_facts_are_taught_in() -> None:
    tokenizer = tiny_tokenizer(CHAT)
    texts = [tokenizer.decode(ids) for ids in common_questions(tokenizer)]
    assert len(texts) == 2 * len(load_pool("contexts"))
    assert any("Someone asked" in text for text in texts)
    assert any("<user>" in text for text in texts)
    for pair in load_pool("contexts"):
        assert any(pair.question in text and pair.answer in text for text in texts)


def test_reads_are_made_once_and_again_after_the_memory_changed() -> None:
    model = with_background()
    reads = background_reads(model)
    assert background_reads(model) is reads
    assert background_reads(copy.deepcopy(model)) is not reads
    model.load_memory_tensors(model.memory_tensors())
    assert background_reads(model) is not reads
    model.background = None
    assert background_reads(model) == {}


def disturbed(model: GraftedModel, writer: LeastInterference) -> tuple[float, float]:
    """How far a lesson moves the background's reads and its own, root mean square."""
    model.assign_rows({})
    teach(model, [random_batch(9, 8)], Recipe(writer=writer, passes=1, rows=None, ranking="tf"))
    rows = model.rows()["0"]
    covariance = background_reads(model)["0"].covariance_of(rows.slots) / model.config.slots
    own = random_batch(9, 8)
    embedded = model.base.get_input_embeddings()(own.input_ids[own.attention_mask])
    taught = model.table("0").read(model.layer(0).address(embedded)).square().sum(-1).mean()
    return torch.trace(rows.values.T @ covariance @ rows.values).sqrt().item(), taught.sqrt().item()


def test_the_full_covariance_spares_more_of_the_background_than_its_diagonal() -> None:
    model = with_background(layers=(0,))
    full, diagonal = (
        disturbed(model, LeastInterference(covariance=covariance, background_weight=100.0, ridge=0.01, max_step=None, learning_rate=0.1))
        for covariance in ("full", "diagonal")
    )
    assert full[0] / full[1] < 0.9 * diagonal[0] / diagonal[1]


def test_earlier_lessons_count_beside_the_covariance() -> None:
    model = with_background(layers=(0,))
    batch = random_batch(9, 8)
    recipe = Recipe(passes=1, rows=None, ranking="tf")
    first = teach(model, [batch], recipe).changes["0"]
    model.assign_rows({})
    own = first.slots[: len(first) // 2]
    again = teach(model, [batch], recipe, {"0": merge_taught(model.usage["0"], [own])}).changes["0"]

    def moved(rows: Rows) -> float:
        return rows.values[torch.isin(rows.slots, own)].norm().item() / rows.values.norm().item()

    assert moved(again) < moved(first)


def test_reads_are_computed_alike_however_short_the_lesson_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short lesson is taught with another attention; what the background reads outlasts the lesson and must not depend on it."""
    chosen: list[str] = []

    def listening(model: GraftedModel) -> dict[str, BackgroundReads]:
        chosen.append(model.base.config._attn_implementation)
        return background_reads(model)

    model = with_background()
    usual = model.base.config._attn_implementation
    monkeypatch.setattr("memgraft.teaching.background_reads", listening)
    teach(model, [random_batch(9, 8)], Recipe(scope="everywhere", passes=1, rows=None, ranking="tf"))
    assert chosen == [usual] == ["sdpa"]
