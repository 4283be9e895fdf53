"""What the recorder hears: each non-padding token once, however the pass is cut, padded or recomputed, and true gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memgraft.entering import FrozenPrefix, frozen, micro_batches
from memgraft.grafted import GraftedModel
from memgraft.memory import Address
from memgraft.reads import Recorder, recording
from memgraft.reference import dense_read
from memgraft.teaching import Recipe, read_gradients
from memgraft.usage import count_accesses
from memgraft.writers import address_matrix
from tests.models import dense, fill, random_batch, random_tokens, tiny_graft, tiny_model, token_rows

LENGTHS = (11, 9, 8)  # near enough to be computed together


def record(model: GraftedModel, ids: Tensor, mask: Tensor, **inputs: Any) -> Recorder:
    """One pass with a loss on every non-padding token's logits, and its backward pass."""
    recorder = Recorder()
    with recording(model, recorder, mask):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **inputs).logits
        (logits[mask] ** 2).sum().backward()
    return recorder


def counts(model: GraftedModel, recorder: Recorder, table: str = "0") -> tuple[list[int], list[int]]:
    slots, number = count_accesses(recorder.of_table(model, table)[0].slots)
    return slots.tolist(), number.tolist()


def reads_of(model: GraftedModel, recorder: Recorder, table: str = "0") -> tuple[Tensor, Tensor, Tensor]:
    address, gradient = recorder.of_table(model, table)
    return address.slots, address.weights, gradient


class TestCounts:
    """In front of block 0 a Llama's hidden states are its embeddings: the same to the last bit, whatever surrounds a token."""

    def graft(self) -> GraftedModel:
        model = fill(tiny_graft(layers=(0,)), every=2)
        for parameter in model.base.parameters():
            parameter.requires_grad_(False)
        return model

    def test_are_every_slot_of_every_token_that_is_not_padding(self) -> None:
        model = self.graft()
        tokens = random_tokens(*LENGTHS)
        recorder = record(model, *token_rows(tokens))
        embedded = model.base.get_input_embeddings()(torch.tensor([token for row in tokens for token in row]))
        expected = model.layer(0).address(embedded).slots.flatten().tolist()
        assert counts(model, recorder) == (sorted(set(expected)), [expected.count(slot) for slot in sorted(set(expected))])
        assert sum(counts(model, recorder)[1]) == sum(LENGTHS) * 2 * 4

    @pytest.mark.parametrize("left", [False, True])
    def test_are_the_same_with_and_without_padding(self, left: bool) -> None:
        model = self.graft()
        tokens = random_tokens(*LENGTHS)
        ids, mask = token_rows([*tokens, random_tokens(40)[0]], left=left, filler=7)
        padded = record(model, ids[:-1], mask[:-1])
        alone = Recorder()
        alone.reads["0"] = [read for row in tokens for read in record(model, *token_rows([row])).reads["0"]]
        assert counts(model, padded) == counts(model, alone)

    def test_dont_depend_on_what_padding_holds(self) -> None:
        model = self.graft()
        tokens = random_tokens(*LENGTHS)
        zero, other = (record(model, *token_rows(tokens, filler=filler)) for filler in (0, 200))
        assert counts(model, zero) == counts(model, other)

    @pytest.mark.parametrize("limit", [1, 15, 25, 1000])
    def test_are_the_same_over_micro_batches(self, limit: int) -> None:
        model, batch = self.graft(), random_batch(4, *LENGTHS, 30)
        _, recorder = read_gradients(model, batch, 0, Recipe(micro_batch_tokens=limit), None)
        assert len(recorder.reads["0"]) > (limit < 1000)
        assert counts(model, recorder) == counts(model, record(model, batch.input_ids, batch.attention_mask))

    @pytest.mark.parametrize("limit", [1, 1000])
    def test_tell_what_is_taught_from_the_context_before_it(self, limit: int) -> None:
        model, batch = self.graft(), random_batch(4, *LENGTHS)
        own = batch.attention_mask & (torch.arange(batch.input_ids.shape[1]) >= torch.tensor([[0], [3], [7], [4]]))
        _, recorder = read_gradients(model, replace(batch, writable=own), 0, Recipe(micro_batch_tokens=limit), None)
        for part, found in ((own, recorder.of_table(model, "0")[0]), (batch.attention_mask & ~own, recorder.context_of("0"))):
            expected = model.layer(0).address(model.base.get_input_embeddings()(batch.input_ids[part]))
            assert torch.equal(found.slots.flatten().sort().values, expected.slots.flatten().sort().values)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("settings", [{"layers": (0, 1)}, {"layers": (0, 1), "shared_values": True}, {"layers": (1,)}])
def test_activation_checkpointing_counts_once_and_changes_no_gradient(settings: dict[str, Any], reentrant: bool) -> None:
    model = fill(tiny_graft(tiny_model(depth=3), **settings), every=2)
    tokens = token_rows(random_tokens(*LENGTHS))
    model.base.train()
    embedded = (
        model.base.get_input_embeddings()(tokens[0]).detach().requires_grad_(True)
    )  # the reentrant kind needs an input with a gradient
    calls: list[int] = []
    model.base.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))

    def run() -> Recorder:
        recorder = Recorder()
        with recording(model, recorder, tokens[1]):
            logits = model(inputs_embeds=embedded, attention_mask=tokens[1], use_cache=False).logits
            (logits[tokens[1]] ** 2).sum().backward()
        return recorder

    plain = run()
    assert len(calls) == 1
    model.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    checkpointed = run()
    assert len(calls) == 3  # it did run twice
    for table in model.config.tables:
        for a, b in zip(reads_of(model, checkpointed, table), reads_of(model, plain, table), strict=True):
            assert torch.equal(a, b)
        assert plain.of_table(model, table)[1].abs().sum() > 0


@pytest.mark.parametrize("written", [0.0, 1.0])
@pytest.mark.parametrize("settings", [{"layers": (1,)}, {"layers": (0, 1)}, {"layers": (0, 1), "shared_values": True}, {"gate": "swilu"}])
def test_gradients_at_the_read_are_those_of_autograd_through_a_dense_table(settings: dict[str, Any], written: float) -> None:
    model = tiny_graft(**settings)
    batch = random_batch(*LENGTHS)
    if written:
        fill(model, every=2)

    tables = {name: dense(rows, 64).requires_grad_(True) for name, rows in model.rows().items()}
    reads: list[Tensor] = []

    def in_front(index: int) -> Any:
        layer = model.layer(index)

        def hook(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x_TD = args[0].view(-1, args[0].shape[-1])
            y_TV = dense_read(layer.address(x_TD), tables[model.config.table_of(index)])
            y_TV.retain_grad()
            reads.append(y_TV)
            out = y_TV * layer.scale
            if layer.config.gate == "swilu":
                out = (out * torch.nn.functional.silu(x_TD @ layer.gate_in)) @ layer.gate_out
            return (args[0] + out.view_as(args[0]), *args[1:])

        return hook

    with frozen(model):
        loss, recorder = read_gradients(model, batch, 0, Recipe(), None)
        handles = [model.blocks[layer].register_forward_pre_hook(in_front(i)) for i, layer in enumerate(model.config.layers)]
        with model.without_memory():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        for handle in handles:
            handle.remove()
    predicted, targets = logits[:, :-1][batch.targets[:, 1:]], batch.input_ids[batch.targets]
    expected = torch.nn.functional.cross_entropy(predicted, targets)
    expected.backward()

    assert loss == pytest.approx(expected.item(), rel=1e-5)
    kept = batch.attention_mask.flatten()
    layer_reads = [read for name in tables for read in recorder.reads[name]]  # layers in order: each has its own table, or all share one
    for index, read in enumerate(reads):
        assert read.grad is not None
        torch.testing.assert_close(layer_reads[index].gradient, read.grad[kept], atol=2e-6, rtol=1e-4)
        assert not read.grad[~kept].any()
    for name, table in tables.items():
        address, gradient = recorder.of_table(model, name)
        torch.testing.assert_close(address_matrix(address, torch.arange(64)).T @ gradient, table.grad, atol=2e-6, rtol=1e-4)


def test_gradients_are_the_same_over_micro_batches_and_over_the_frozen_prefix() -> None:
    model, batch = fill(tiny_graft(layers=(1,)), every=2), random_batch(*LENGTHS)
    with frozen(model):
        whole_loss, whole = read_gradients(model, batch, 0, Recipe(), None)
        cut_loss, cut = read_gradients(model, batch, 0, Recipe(micro_batch_tokens=1), None)
        prefix = FrozenPrefix(model, model.config.layers[0], 2**20)
        cached_loss, cached = read_gradients(model, batch, 0, Recipe(), prefix)
        again_loss, again = read_gradients(model, batch, 0, Recipe(), prefix)
    assert list(prefix.kept) == [(0, 0)]
    assert cut_loss == pytest.approx(whole_loss, rel=1e-5)
    for found, expected in zip(reads_of(model, cut), reads_of(model, whole), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    for loss, recorder in ((cached_loss, cached), (again_loss, again)):
        assert loss == whole_loss
        for found, expected in zip(reads_of(model, recorder), reads_of(model, whole), strict=True):
            assert torch.equal(found, expected)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 100))
def test_micro_batches_hold_every_sequence_once_and_stay_within_the_limit(lengths: list[int], limit: int) -> None:
    parts = micro_batches(random_batch(*lengths, targets=1), limit)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(lengths)))
    for part in parts:
        width = max(lengths[index] for index in part.tolist())
        assert len(part) == 1 or len(part) * width <= limit


def test_a_read_that_no_loss_reached_counts_with_a_gradient_of_zero() -> None:
    model = tiny_graft()
    recorder = Recorder()
    ids, mask = token_rows(random_tokens(*LENGTHS))
    with recording(model, recorder, mask):
        model(input_ids=ids, attention_mask=mask)
    address, gradient = recorder.of_table(model, "0")
    assert len(address.slots) == sum(LENGTHS)
    assert gradient.shape == (sum(LENGTHS), 32)
    assert not gradient.any()


def test_nobody_listens_after_the_recording_ends_even_with_an_error() -> None:
    model, recorder = tiny_graft(), Recorder()
    ids, mask = token_rows(random_tokens(3))
    with pytest.raises(RuntimeError, match="stop"), recording(model, recorder, mask):
        raise RuntimeError("stop")
    model(input_ids=ids, attention_mask=mask)
    assert recorder.reads == {}


def test_a_matrix_of_weights_adds_the_heads_that_read_a_slot() -> None:
    address = Address(torch.tensor([[[3, 1], [1, 5]]]), torch.tensor([[[0.5, 0.25], [0.125, 1.0]]]))
    assert address_matrix(address, torch.tensor([1, 2, 5])).tolist() == [[0.375, 0.0, 1.0]]
    assert address_matrix(address, torch.zeros(0, dtype=torch.int64)).shape == (1, 0)
