"""Fingerprints: the same for the same weights however they are kept, another one for another model or tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from memgraft.errors import GraftError
from memgraft.fingerprint import ABSOLUTE, POSITIONS, RELATIVE, TENSORS, BaseFingerprint, TokenizerFingerprint, WeightSample

if TYPE_CHECKING:
    from memgraft.models import LoadedModel

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def llama(seed: int = 0, **changed: Any) -> LlamaForCausalLM:
    settings: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**settings | changed))


def mismatch(first: nn.Module, second: nn.Module) -> str | None:
    one, two = BaseFingerprint.of(first), BaseFingerprint.of(second)  # type: ignore[arg-type]
    assert (one.mismatch(two) is None) == (two.mismatch(one) is None)
    return one.mismatch(two)


def test_a_model_is_sampled_over_its_whole_depth() -> None:
    sample = BaseFingerprint.of(llama(num_hidden_layers=12))
    assert len(sample.weights) == TENSORS
    assert all(len(set(weights.values)) > POSITIONS // 2 for weights in sample.weights)
    layers = {int(weights.name.split(".")[2]) for weights in sample.weights if ".layers." in weights.name}
    assert len(layers) >= 5


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_the_same_weights_in_another_dtype_match(first: torch.dtype, second: torch.dtype) -> None:
    assert mismatch(llama().to(first), llama().to(second)) is None


def test_a_model_cast_to_bf16_and_back_matches() -> None:
    assert mismatch(llama(), llama().bfloat16().float()) is None


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_saved_and_loaded_matches(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert mismatch(model, loaded) is None
    assert BaseFingerprint.of(model).facts == BaseFingerprint.of(loaded).facts


def test_two_random_models_of_the_same_shape_do_not_match() -> None:
    problem = mismatch(llama(0), llama(1))
    assert problem is not None
    assert "holds other weights" in problem
    assert "\n" not in problem


@pytest.mark.parametrize("relative", [0.02, -0.02, 1.0])
def test_a_model_finetuned_everywhere_does_not_match(relative: float) -> None:
    changed = llama()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1 + relative)
    assert "holds other weights" in str(mismatch(llama(), changed))


@pytest.mark.parametrize(
    ("changed", "fact"),
    [
        ({"num_hidden_layers": 5}, "num_hidden_layers is 5, the store's base has 4"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4"),
        ({"vocab_size": 130}, "vocab_size is 130"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}, "rope_theta is 500000.0"),
    ],
)
def test_another_configuration_is_named(changed: dict[str, Any], fact: str) -> None:
    assert fact in str(mismatch(llama(), llama(**changed)))


@pytest.mark.parametrize(
    "model",
    [
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)),
        lambda: OPTForCausalLM(OPTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48)),
        lambda: Qwen2MoeForCausalLM(
            Qwen2MoeConfig(
                vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_experts=4, moe_intermediate_size=16
            )
        ),
    ],
)
def test_other_architectures_are_told_apart_and_match_themselves(model: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = model()
    torch.manual_seed(1)
    second = model()
    assert mismatch(first, second) is not None
    assert "model_type is" in str(mismatch(llama(), first))
    first.save_pretrained(tmp_path)
    assert mismatch(first, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)) is None


class Memory(nn.Module):
    """As a memory layer of this package would be."""

    __module__ = "memgraft.memory"

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Linear(32, 8)
        self.table = nn.Parameter(torch.randn(4, 4))


def test_hooks_and_memory_layers_do_not_matter() -> None:
    grafted = llama()
    before = BaseFingerprint.of(grafted)
    grafted.model.layers[1].register_forward_pre_hook(lambda module, args: None)
    grafted.model.layers[1].add_module("a_memory", Memory())
    grafted.add_module("memory", nn.ModuleList([Memory(), Memory()]))
    grafted.requires_grad_(False)
    assert BaseFingerprint.of(grafted) == before


def test_another_module_s_weights_in_the_model_do_matter() -> None:
    changed = llama()
    for layer in changed.model.layers:
        layer.self_attn.q_proj = nn.Sequential(layer.self_attn.q_proj)
    assert mismatch(llama(), changed) is not None


def test_weights_that_are_not_loaded_not_finite_or_quantised_are_refused() -> None:
    with torch.device("meta"):
        empty = llama()
    with pytest.raises(GraftError, match=r"has no data \(device 'meta'\): load the model without offloading"):
        BaseFingerprint.of(empty)
    broken = llama()
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(GraftError, match="holds NaN or infinite weights"):
        BaseFingerprint.of(broken)
    quantised = llama()
    for module in quantised.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.to(torch.int8), requires_grad=False))
    with pytest.raises(GraftError, match="without quantisation"):
        BaseFingerprint.of(quantised)


def test_a_fact_that_one_side_does_not_know_is_no_mismatch() -> None:
    known = BaseFingerprint.of(llama())
    for name in known.facts:
        older = known.model_copy(update={"facts": {key: value for key, value in known.facts.items() if key != name}})
        assert known.mismatch(older) is None
        assert older.mismatch(known) is None


def test_a_fingerprint_survives_json() -> None:
    fingerprint = BaseFingerprint.of(llama())
    assert BaseFingerprint.model_validate_json(fingerprint.model_dump_json(), strict=True) == fingerprint


finite = st.floats(width=32, min_value=-(2.0**15), max_value=2.0**15)


@given(st.lists(finite, min_size=1, max_size=40))
def test_rounding_to_a_half_precision_is_always_within_the_tolerance(weights: list[float]) -> None:
    exact = torch.tensor(weights)
    samples = [WeightSample.of("w", exact.to(dtype)) for dtype in DTYPES]
    assert all(one.mismatch(two) is None for one in samples for two in samples)


@given(finite.filter(lambda weight: abs(weight) > 100 * ABSOLUTE), st.sampled_from([1, -1]))
def test_a_change_beyond_the_tolerance_is_always_seen(weight: float, sign: int) -> None:
    one = WeightSample.of("w", torch.tensor([weight]))
    two = WeightSample.of("w", torch.tensor([weight * (1 + sign * 2 * (RELATIVE + 0.01))]))
    assert one.mismatch(two) is not None


def test_samples_of_any_size_stay_within_the_matrix() -> None:
    for count in (1, 2, 63, 64, 65, 1000):
        values = set(WeightSample.of("w", torch.arange(float(count))).values)
        assert values <= set(range(count))
        assert len(values) >= min(count, POSITIONS) // 2


def test_a_float8_matrix_can_be_sampled() -> None:
    weight = torch.linspace(-1, 1, 100).reshape(10, 10)
    sample = WeightSample.of("w", weight.to(torch.float8_e4m3fn))
    assert max(sample.values) <= 1.0


def test_the_tokenizer_is_recognised_after_saving_and_with_another_padding_token(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    fingerprint = TokenizerFingerprint.of(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    again = TokenizerFingerprint.of(AutoTokenizer.from_pretrained(tmp_path))
    assert fingerprint.mismatch(again) is None
    assert fingerprint.warning(again) is None
    assert TokenizerFingerprint.model_validate_json(fingerprint.model_dump_json(), strict=True) == fingerprint


def test_another_tokenizer_is_named(tiny_folder: Path) -> None:
    def changed(change: Any) -> str | None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        before = TokenizerFingerprint.of(tokenizer)
        change(tokenizer)
        return before.mismatch(TokenizerFingerprint.of(tokenizer))

    assert "tokens, the store's has" in str(changed(lambda tokenizer: tokenizer.add_tokens(["<new>"])))
    assert "eos token is" in str(changed(lambda tokenizer: setattr(tokenizer, "eos_token", "a")))
    assert "bos token is" in str(changed(lambda tokenizer: setattr(tokenizer, "bos_token", "a")))

    def merge_spaces(tokenizer: Any) -> None:
        from tokenizers import normalizers

        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("  ", " ")

    assert "other tokens" in str(changed(merge_spaces))


def test_another_chat_template_is_a_warning_and_no_mismatch(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    before = TokenizerFingerprint.of(tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    after = TokenizerFingerprint.of(tokenizer)
    assert before.mismatch(after) is None
    assert "chat template" in str(before.warning(after))
    assert before.warning(before) is None


@pytest.mark.real
def test_the_real_model_is_recognised_in_every_dtype_and_when_barely_finetuned_it_is_not(smol: LoadedModel) -> None:
    fingerprint = BaseFingerprint.of(smol.model)
    assert fingerprint.facts["model_type"] == "llama"
    assert fingerprint.facts["num_hidden_layers"] == 30
    weights = {name: parameter.detach() for name, parameter in smol.model.named_parameters()}
    for sample in fingerprint.weights:
        for dtype in DTYPES:
            assert sample.mismatch(WeightSample.of(sample.name, weights[sample.name].to(dtype))) is None
        noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))
        finetuned = (weights[sample.name].float() + 1e-3 * noise).bfloat16()
        assert sample.mismatch(WeightSample.of(sample.name, finetuned)) is not None


@pytest.mark.real
def test_the_real_tokenizer_is_recognised(smol: LoadedModel) -> None:
    fingerprint = TokenizerFingerprint.of(smol.tokenizer)
    assert fingerprint.vocab_size == 49_152
    assert set(fingerprint.special_tokens) == {"bos", "eos"}
    assert fingerprint.chat_template_sha256 is not None
    assert fingerprint.mismatch(TokenizerFingerprint.of(smol.tokenizer)) is None
