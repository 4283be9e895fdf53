"""Drift against a slow loop and known divergences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.probes import drift_kl, likelihood
from memgraft.probes.drift import kl_divergence, token_batches
from memgraft.probes.language_model import TokenRows, padded

ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14]]


class Switch:
    """Adds to the hidden states of the second block unless it is off."""

    def __init__(self, model: PreTrainedModel, size: float) -> None:
        self.on, self.shift = True, size * torch.randn(32, generator=torch.Generator().manual_seed(0))
        layers: Any = model.get_submodule("model.layers")
        layers[1].register_forward_pre_hook(self.add)

    def add(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (args[0] + self.shift, *args[1:]) if self.on else None

    @contextmanager
    def off(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True


def test_no_change_is_exactly_no_drift(llama: PreTrainedModel) -> None:
    switch = Switch(llama, 0.0)
    sums = drift_kl(llama, switch.off, [padded(ROWS, 0)])
    assert sums.totals == (0.0, 0.0, 0.0)
    assert sums.counts == (6, 3, 1)


@pytest.mark.parametrize("chunk", [None, 700])
def test_drift_equals_a_loop_over_tokens_and_ignores_padding(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, chunk: int | None
) -> None:
    if chunk:
        monkeypatch.setattr(likelihood, "CHUNK", chunk)
    switch = Switch(llama, 0.5)
    llama.eval()
    expected = []
    for row in ROWS:
        with torch.no_grad():
            taught = llama(input_ids=torch.tensor([row])).logits[0].double().softmax(-1)
            with switch.off():
                base = llama(input_ids=torch.tensor([row])).logits[0].double().softmax(-1)
        expected.append(sum(float((base[t] * (base[t] / taught[t]).log()).sum()) for t in range(len(row))))
    sums = drift_kl(llama, switch.off, [padded(ROWS[:2], 3), padded(ROWS[2:], 3)])
    assert sums.totals == pytest.approx(expected, rel=1e-4)
    assert min(sums.totals) > 0.001
    assert sums.mean == pytest.approx(sum(expected) / 10, rel=1e-4)
    assert switch.on


def test_the_base_comes_first_in_the_divergence(bigram: Any) -> None:
    # base (½, ½ on two tokens), taught (¼, ¾): KL = ½ ln(½/¼) + ½ ln(½/¾) = ½ ln(4/3)
    with torch.no_grad():
        bigram.table.weight.fill_(-1e4)
        bigram.table.weight[0, :2] = torch.tensor([0.25, 0.75]).log()

    @contextmanager
    def base() -> Iterator[None]:
        kept = bigram.table.weight[0, :2].clone()
        bigram.table.weight[0, :2] = 0.0
        yield
        bigram.table.weight[0, :2] = kept

    (total,) = drift_kl(bigram, base, [TokenRows(torch.tensor([[0]]), torch.tensor([[1]]))]).totals
    assert total == pytest.approx(0.5 * torch.tensor(4 / 3).log().item(), rel=1e-5)


def test_a_token_that_the_base_excludes_adds_nothing() -> None:
    base = torch.tensor([[0.0, float("-inf")]])
    assert kl_divergence(base, base).tolist() == [0.0]
    assert kl_divergence(base, torch.tensor([[0.5, 0.5]]).log()).tolist() == pytest.approx([torch.tensor(2.0).log().item()])


def test_batches_keep_the_order_of_the_rows(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    batches = list(token_batches(llama, tokenizer, ROWS, batch_size=2))
    found = [ids[mask.bool()].tolist() for batch in batches for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    assert found == ROWS
    assert [len(batch.input_ids) for batch in batches] == [2, 1]
