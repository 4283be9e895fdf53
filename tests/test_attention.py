"""Quick attention computes what the default computes, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from memgraft import attention
from memgraft.attention import LONGEST, quick_attention
from memgraft.baselines.training import backward
from memgraft.entering import frozen
from memgraft.grafted import GraftedModel
from memgraft.teaching import Recipe, read_gradients
from tests.models import ARCHITECTURES, random_batch, tiny_graft, tiny_model


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    backward(model, random_batch(7, 5, 9, 12))
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_the_default_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(name)
    quick = gradients(model)
    monkeypatch.setattr(attention, "LONGEST", 0)
    expected = gradients(model)
    assert quick.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(quick[parameter], gradient, rtol=1e-3, atol=1e-5, msg=lambda text, p=parameter: f"{p}: {text}")


def test_reads_have_the_gradients_of_the_default_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model: GraftedModel = tiny_graft()

    def read() -> torch.Tensor:
        with frozen(model), torch.enable_grad():
            _, recorder = read_gradients(model, random_batch(7, 5, 9, 12), 0, Recipe(), None)
        return recorder.of_table(model, model.config.tables[0])[1]

    quick = read()
    monkeypatch.setattr(attention, "LONGEST", 0)
    torch.testing.assert_close(quick, read(), rtol=1e-3, atol=1e-6)
    assert (quick != 0).any()


def test_the_implementation_comes_back_whatever_happens() -> None:
    model, within = tiny_model(), []

    def stopped() -> None:
        with quick_attention(model, LONGEST):
            within.append(model.config._attn_implementation)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert within == ["eager"]
    assert model.config._attn_implementation == "sdpa"


def test_long_sequences_and_chosen_implementations_are_left_alone() -> None:
    model = tiny_model()
    with quick_attention(model, LONGEST + 1):
        assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with quick_attention(model, 1):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eager"
