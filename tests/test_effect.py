"""The unit in which steps are measured: what a change does to what the head reads, whatever the residual stream's norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from memgraft.blocks import added_before, find_blocks, hidden_states_at_head, hidden_states_before
from memgraft.effect import ANSWERS_MOVE, LAYERS_MOVE, length_that_moves
from memgraft.grafting import graft
from tests.models import ARCHITECTURES, random_tokens, tiny_model, tiny_tokenizer, token_rows

TEXTS = random_tokens(24, 20, 17)


def length(model: PreTrainedModel, share: float = 0.5) -> float:
    return length_that_moves(model, find_blocks(model), 1, TEXTS, share=share, seed=0)


@torch.no_grad()
def passing_on() -> PreTrainedModel:
    """A Llama whose second block adds nothing, so that the head reads the norm of what enters it."""
    model = tiny_model(depth=2)
    block = find_blocks(model)[1]
    block.self_attn.o_proj.weight.zero_()
    block.mlp.down_proj.weight.zero_()
    return model


def entering(model: PreTrainedModel) -> Tensor:
    blocks = find_blocks(model)
    return torch.cat([hidden_states_before(model, blocks, 1, input_ids=torch.tensor([ids]))[0, 1:] for ids in TEXTS])


def test_where_nothing_weighs_more_than_another_it_is_a_share_of_the_norm() -> None:
    model = passing_on()
    assert length(model) == pytest.approx(0.5 * entering(model).norm(dim=-1).median().item(), rel=0.1)


def test_a_direction_that_holds_nearly_all_of_the_norm_but_weighs_nothing_does_not_count() -> None:
    model = passing_on()
    before = length(model)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1000.0
        model.model.norm.weight[0] = 0
    assert entering(model).norm(dim=-1).median() > 900
    rest = entering(model)[:, 1:].norm(dim=-1).median().item()
    assert length(model) == pytest.approx(0.5 * rest, rel=0.1)
    assert length(model) < 2 * before


def test_it_grows_with_the_share_and_with_the_residual_stream() -> None:
    model = passing_on()
    once = length(model)
    assert length(model, share=1.5) == pytest.approx(3 * once)
    with torch.no_grad():
        find_blocks(model)[0].self_attn.o_proj.weight.zero_()
        find_blocks(model)[0].mlp.down_proj.weight.zero_()
        alone = length(model)
        model.model.embed_tokens.weight.mul_(10)
    assert length(model) == pytest.approx(10 * alone, rel=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_change_of_that_length_moves_what_the_head_reads_by_about_that_share(name: str) -> None:
    model = tiny_model(name, depth=3)
    blocks = find_blocks(model)
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    found = length(model, share=0.1)
    assert found == length(model, share=0.1)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    shares = []
    generator = torch.Generator().manual_seed(1)
    for ids in TEXTS:
        inputs = torch.tensor([ids])
        before = hidden_states_at_head(model, input_ids=inputs)
        change = torch.randn(before.shape, generator=generator)
        change = found * change / change.norm(dim=-1, keepdim=True)
        change[:, 0] = 0
        with added_before(blocks, 1, change):
            after = hidden_states_at_head(model, input_ids=inputs)
        shares.append(((after - before).norm(dim=-1) / before.norm(dim=-1))[0, 1:])
    assert torch.cat(shares).median().item() == pytest.approx(0.1, rel=0.25)


def test_a_graft_measures_the_steps_of_its_layers_in_it() -> None:
    model = tiny_model(depth=4)
    texts = ["the quick brown fox jumps over the lazy dog " * 4, "a stitch in time saves nine " * 5]
    grafted = graft(model, tiny_tokenizer(), background=texts, slots=64, layers=(1, 2), answer_layer=3)
    assert grafted.answers is not None
    assert grafted.background is not None
    parts = grafted.background.split(grafted.tokenizer)[0]
    with grafted.without_memory():
        expected = [
            length_that_moves(model, grafted.blocks, layer, parts[:4], share=share, seed=seed)
            for layer, share, seed in ((1, LAYERS_MOVE, 0), (2, LAYERS_MOVE, 1), (3, ANSWERS_MOVE, 0))
        ]
    assert [grafted.layer(0).scale.item(), grafted.layer(1).scale.item(), grafted.answers.scale.item()] == pytest.approx(expected)


def test_what_the_head_reads_is_what_it_is_called_with() -> None:
    model = tiny_model()
    read: list[Tensor] = []
    ids, mask = token_rows(random_tokens(9, 6))
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    handle.remove()
    assert torch.equal(hidden_states_at_head(model, input_ids=ids, attention_mask=mask), read[0])
