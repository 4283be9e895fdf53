"""Starting a pass in the middle: the frozen blocks below may be skipped only where that changes no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from memgraft.blocks import can_start_at, check_causal, check_remembers, find_blocks, hidden_states_before, starting_at
from memgraft.errors import GraftError
from tests import models
from tests.models import ARCHITECTURES, random_tokens, tiny_model, token_rows


def inputs() -> dict[str, Tensor]:
    ids, mask = token_rows(random_tokens(9, 6, 2))
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    result: Tensor = model(**inputs(), use_cache=False).logits
    return result


# Five blocks are skipped: where blocks return tuples, a model takes [0] of each output.
@pytest.mark.parametrize("layer", [0, 1, 5])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "mamba", "bloom", "gptj"])
def test_a_pass_that_starts_with_the_hidden_states_of_a_block_gives_the_bits_of_a_full_pass(name: str, layer: int) -> None:
    model = tiny_model(name, depth=6)
    blocks = find_blocks(model)
    expected = logits(model)
    hidden = hidden_states_before(model, blocks, layer, **inputs())
    run: list[int] = []
    handles = [
        next(block.children()).register_forward_hook(lambda *_, index=index: run.append(index)) for index, block in enumerate(blocks)
    ]
    with starting_at(blocks, layer, hidden):
        assert torch.equal(logits(model), expected)
    assert sorted(set(run)) == list(range(layer, 6))
    for handle in handles:
        handle.remove()
    assert torch.equal(logits(model), expected)
    assert can_start_at(model, blocks, layer)


def test_hidden_states_before_a_block_are_those_that_enter_it_and_nothing_above_runs() -> None:
    model = tiny_model(depth=3)
    blocks = find_blocks(model)
    entered: list[Tensor] = []
    blocks[2].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    logits(model)
    above: list[str] = []
    next(blocks[2].children()).register_forward_hook(lambda *_: above.append("block 2"))
    model.lm_head.register_forward_hook(lambda *_: above.append("head"))
    assert torch.equal(hidden_states_before(model, blocks, 2, **inputs()), entered[0])
    assert not above


def test_blocks_are_whole_again_after_an_error_within() -> None:
    model = tiny_model(depth=3)
    blocks = find_blocks(model)
    expected = logits(model)
    with pytest.raises(RuntimeError, match="stop"), starting_at(blocks, 2, torch.zeros(3, 9, 32)):
        raise RuntimeError("stop")
    assert torch.equal(logits(model), expected)
    assert not any("forward" in block.__dict__ or block._forward_pre_hooks for block in blocks)


def test_where_blocks_hand_on_more_than_hidden_states_no_pass_starts_above_them() -> None:
    model = tiny_model("rwkv", depth=3)
    blocks = find_blocks(model)
    assert not can_start_at(model, blocks, 2)
    assert not any("forward" in block.__dict__ or block._forward_pre_hooks for block in blocks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_causal_architecture_is_taken_for_one(name: str, attention: str, dtype: torch.dtype) -> None:
    model = tiny_model(name, attention=attention, dtype=dtype)
    check_causal(model, find_blocks(model))


@pytest.mark.parametrize("name", ["mamba", "bloom", "gptj", "rwkv"])
def test_a_causal_architecture_with_blocks_of_other_forms_is_taken_for_one(name: str) -> None:
    model = tiny_model(name)
    check_causal(model, find_blocks(model))


def test_looking_for_later_tokens_influence_leaves_no_trace() -> None:
    model = tiny_model("opt").train()
    model.lm_head.weight.requires_grad_(False)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    check_causal(model, find_blocks(model))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_looking_for_the_blocks_leaves_no_trace() -> None:
    model = tiny_model("opt", layerdrop=1.0).train()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert len(find_blocks(model)) == 2
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", [*ARCHITECTURES, "mamba", "bloom", "gptj"])
def test_a_cache_that_reaches_the_blocks_is_found(name: str) -> None:
    model = tiny_model(name)
    check_remembers(model, find_blocks(model))


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("minimax", {"num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]}, "can't go on with a cache"),
        (
            "gemma4_text",
            {
                "sliding_window": 4,
                "num_kv_shared_layers": 2,
                "layer_types": ["sliding_attention", "full_attention"],
                "global_head_dim": 8,
                "vocab_size_per_layer_input": 257,
                "hidden_size_per_layer_input": 8,
            },
            "block 2 is handed only the tokens whose logits are asked for",
        ),
    ],
)
def test_a_model_that_could_not_generate_with_a_memory_is_refused(
    name: str, settings: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models._SETTINGS, name, {**models._GROUPED, **settings})
    model = tiny_model(name, depth=4)
    with pytest.raises(GraftError, match=why):
        check_remembers(model, find_blocks(model))


def test_a_model_that_goes_on_from_a_state_of_its_own_is_refused() -> None:
    model = tiny_model("rwkv")
    with pytest.raises(GraftError, match=r"RwkvForCausalLM goes on from a state of its own \(state\)"):
        check_remembers(model, find_blocks(model))
