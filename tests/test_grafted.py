"""Grafting: an empty memory changes no bit of any architecture, a written one works under caches and padding, and comes off again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from memgraft.blocks import find_blocks, hidden_states_before
from memgraft.errors import DataError, GraftError
from memgraft.grafted import GraftedModel
from memgraft.grafting import default_layers, graft
from memgraft.states import background_states
from tests.models import (
    ARCHITECTURES,
    HIDDEN,
    VOCABULARY,
    fill,
    random_rows,
    random_tokens,
    save_tiny_model,
    tiny_config,
    tiny_graft,
    tiny_model,
    tiny_tokenizer,
    token_rows,
)

TEXTS = [" ".join(f"{word} {number}" for number in range(9)) for word in ("north", "a lamp", "seven", "Grüße", "1 + 1 =", "The ship")]

Inputs = dict[str, Tensor]


def padded_inputs(*, left: bool) -> Inputs:
    ids, mask = token_rows(random_tokens(9, 6, 2), left=left)
    return {"input_ids": ids, "attention_mask": mask.long()}


@torch.no_grad()
def logits(model: PreTrainedModel | GraftedModel, inputs: Inputs) -> Tensor:
    result: Tensor = model(**inputs).logits
    return result


def generated(model: PreTrainedModel | GraftedModel, inputs: Inputs, **settings: Any) -> list[list[int]]:
    generate: Any = model.generate
    tokens: list[list[int]] = generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0, **settings).tolist()
    return tokens


MEMORIES: dict[str, dict[str, Any]] = {
    "one layer": {"layers": (1,)},
    "one gated layer": {"layers": (0,), "gate": "swilu"},
    "separate tables": {"layers": (0, 1)},
    "a shared table, gated": {"layers": (0, 1), "shared_values": True, "gate": "swilu"},
}


class TestAnEmptyMemory:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_changes_no_bit_of_the_logits(self, name: str, dtype: torch.dtype, attention: str) -> None:
        base = tiny_model(name, dtype=dtype, attention=attention)
        both = [padded_inputs(left=left) for left in (False, True)]
        expected = [logits(base, inputs) for inputs in both]
        for settings in MEMORIES.values():
            grafted = tiny_graft(base, **settings)
            assert not any(len(rows) for rows in grafted.rows().values())
            assert all(torch.equal(logits(grafted, inputs), want) for inputs, want in zip(both, expected, strict=True))
            fill(grafted, size=0)  # a row for every slot: nothing on the way can be skipped
            assert all(len(rows) == grafted.config.slots for rows in grafted.rows().values())
            assert all(torch.equal(logits(grafted, inputs), want) for inputs, want in zip(both, expected, strict=True))
            fill(grafted)  # and the memory was on the way all along
            assert not any(torch.equal(logits(grafted, inputs), want) for inputs, want in zip(both, expected, strict=True))
            grafted.detach()

    @pytest.mark.parametrize("name", [*ARCHITECTURES, "mamba", "bloom", "gptj"])
    def test_generates_the_same_tokens_with_the_cache(self, name: str) -> None:
        base, inputs = tiny_model(name), padded_inputs(left=True)
        expected = generated(base, inputs)
        grafted = fill(tiny_graft(base, layers=(0, 1)), size=0)
        assert generated(grafted, inputs) == expected
        assert generated(fill(grafted), inputs) != expected

    @pytest.mark.parametrize("name", ["mamba", "bloom", "gptj", "rwkv"])
    def test_changes_no_bit_of_architectures_with_blocks_of_other_forms(self, name: str) -> None:
        base, inputs = tiny_model(name), padded_inputs(left=False)
        expected = logits(base, inputs)
        assert torch.equal(logits(fill(tiny_graft(base, layers=(0, 1)), size=0), inputs), expected)

    def test_changes_nothing_in_training_mode_either(self) -> None:
        base, inputs = tiny_model("opt"), padded_inputs(left=False)
        grafted = fill(tiny_graft(base), size=0)
        base.train()
        torch.manual_seed(3)
        with grafted.without_memory():
            expected = logits(base, inputs)
        torch.manual_seed(3)
        assert torch.equal(logits(grafted, inputs), expected)
        torch.manual_seed(4)
        assert not torch.equal(logits(grafted, inputs), expected)  # dropout is on


class TestAWrittenMemory:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "opt", "mixtral", "mamba"])
    def test_generates_with_the_cache_what_it_generates_without(self, name: str) -> None:
        grafted, inputs = fill(tiny_graft(tiny_model(name), layers=(0, 1)), every=3), padded_inputs(left=True)
        assert generated(grafted, inputs) == generated(grafted, inputs, use_cache=False)

    @pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3_text", "opt"])
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_says_the_same_under_left_padding_as_alone(self, name: str, attention: str) -> None:
        grafted = fill(tiny_graft(tiny_model(name, attention=attention), layers=(0, 1)), every=3)
        rows = random_tokens(9, 6, 2)
        ids, mask = token_rows(rows, left=True)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)  # what generate() computes
        together = logits(grafted, {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions})
        for index, row in enumerate(rows):
            alone = logits(grafted, {"input_ids": torch.tensor([row])})[0]
            torch.testing.assert_close(together[index, -len(row) :], alone, atol=1e-4, rtol=1e-4)

    def test_is_read_in_front_of_its_blocks(self) -> None:
        grafted, inputs = fill(tiny_graft(layers=(1,))), padded_inputs(left=False)
        entered: list[Tensor] = []
        grafted.blocks[1].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        with grafted.without_memory():
            logits(grafted, inputs)
        logits(grafted, inputs)
        without, with_memory = entered
        torch.testing.assert_close(with_memory, without + grafted.layer(0)(without))

    def test_is_off_within_without_memory_and_on_again_after_it(self) -> None:
        base, inputs = tiny_model(), padded_inputs(left=False)
        untouched = copy.deepcopy(base)
        grafted = fill(tiny_graft(base))
        taught = logits(grafted, inputs)
        with grafted.without_memory() as same:
            assert same is base
            assert torch.equal(logits(grafted, inputs), logits(untouched, inputs))
            with grafted.without_memory():
                pass
            assert torch.equal(logits(grafted, inputs), logits(untouched, inputs))
            assert generated(grafted, inputs) == generated(untouched, inputs)
        assert torch.equal(logits(grafted, inputs), taught)
        with pytest.raises(RuntimeError, match="stop"), grafted.without_memory():
            raise RuntimeError("stop")
        assert torch.equal(logits(grafted, inputs), taught)

    def test_comes_off_for_good(self) -> None:
        base, inputs = tiny_model(), padded_inputs(left=False)
        expected = logits(copy.deepcopy(base), inputs)
        assert torch.equal(logits(fill(tiny_graft(base)).detach(), inputs), expected)
        assert not any(block._forward_pre_hooks for block in find_blocks(base))

    def test_of_a_deep_copy_is_its_own(self) -> None:
        grafted, inputs = tiny_graft(layers=(0, 1)), padded_inputs(left=False)
        base = logits(grafted, inputs)
        copied = fill(copy.deepcopy(grafted))
        assert torch.equal(logits(grafted, inputs), base)
        taught = logits(copied, inputs)
        assert not torch.equal(taught, base)
        with grafted.without_memory():
            assert torch.equal(logits(copied, inputs), taught)
        fill(grafted)
        assert torch.equal(logits(grafted, inputs), taught)

    def test_works_under_activation_checkpointing(self) -> None:
        grafted, inputs = fill(tiny_graft(layers=(0, 1))), padded_inputs(left=False)

        def gradients() -> list[Tensor]:
            grafted.base.zero_grad()
            grafted(**inputs, use_cache=False).logits.square().mean().backward()
            return [parameter.grad.clone() for parameter in grafted.base.parameters() if parameter.grad is not None]

        grafted.base.train()
        expected = gradients()
        grafted.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        found = gradients()
        assert len(found) == len(expected) > 0
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def test_rows_of_tables_that_are_not_named_are_dropped(self) -> None:
        grafted = fill(tiny_graft(layers=(0, 1)))
        grafted.assign_rows({"1": random_rows([3])})
        assert [len(rows) for rows in grafted.rows().values()] == [0, 1]


def t5() -> PreTrainedModel:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2))


def headless() -> PreTrainedModel:
    body: PreTrainedModel = tiny_model().model
    return body


def classifier() -> PreTrainedModel:
    from transformers import LlamaForSequenceClassification

    return LlamaForSequenceClassification(tiny_model().config)


def with_shared_blocks() -> PreTrainedModel:
    """As ALBERT does it: every depth runs the same block."""
    base = tiny_model(depth=3)
    base.model.layers = torch.nn.ModuleList([base.model.layers[0]] * 3)
    return base


def with_blocks_in_parts() -> PreTrainedModel:
    from transformers import XLMConfig, XLMWithLMHeadModel

    return XLMWithLMHeadModel(XLMConfig(vocab_size=50, emb_dim=16, n_layers=2, n_heads=2))


def with_a_longer_sequence_inside() -> PreTrainedModel:
    from transformers import CpmAntConfig, CpmAntForCausalLM

    return CpmAntForCausalLM(CpmAntConfig(vocab_size=50, hidden_size=16, num_attention_heads=2, dim_head=8, dim_ff=16, num_hidden_layers=2))


def without_depth() -> PreTrainedModel:
    base = tiny_model()
    base.config = type("Config", (), {"is_encoder_decoder": False, "get_text_config": lambda self, decoder=None: self})()
    return base


def bert_like(name: str, **settings: Any) -> PreTrainedModel:
    """A random model of the BERT family, of the tests' vocabulary; `is_decoder` decides whether its attention is causal."""
    kind = getattr(transformers, name)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = kind(kind.config_class(**sizes, **settings)).eval()
    return model


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (t5, "T5ForConditionalGeneration is an encoder-decoder model"),
            (headless, "LlamaModel has no language-model head; load it with AutoModelForCausalLM"),
            (classifier, "LlamaForSequenceClassification has no language-model head"),
            (with_shared_blocks, "its 3 blocks are not called once each and in order"),
            (with_blocks_in_parts, "expected one list of 2 decoder blocks, found transformer.attentions, "),
            (with_a_longer_sequence_inside, "block 0 takes hidden states of shape (1, 35, 16), expected (1, 3, 16)"),
            (without_depth, "has no num_hidden_layers"),
        ],
    )
    def test_an_architecture_that_cant_be_grafted_is_refused_with_the_reason(self, make: Callable[[], PreTrainedModel], said: str) -> None:
        with pytest.raises(GraftError) as caught:
            graft(make().eval(), tiny_tokenizer(), background=TEXTS)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_refused_model_is_left_without_hooks(self) -> None:
        base = with_shared_blocks()
        with pytest.raises(GraftError):
            find_blocks(base)
        assert not any(module._forward_pre_hooks for module in base.modules())

    def test_a_memory_for_another_width_or_depth_is_refused(self) -> None:
        with pytest.raises(GraftError, match="memory layer 2 does not exist: LlamaForCausalLM has blocks 0 to 1"):
            GraftedModel(tiny_model(), tiny_tokenizer(), tiny_config(layers=(2,)))
        with pytest.raises(GraftError, match="the memory is 48 wide, LlamaForCausalLM is 32"):
            GraftedModel(tiny_model(), tiny_tokenizer(), tiny_config(hidden_size=48))

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    @pytest.mark.parametrize("name", ["BertLMHeadModel", "RobertaForCausalLM", "ElectraForCausalLM"])
    def test_a_model_whose_tokens_see_later_ones_is_refused_and_the_same_as_a_decoder_is_not(
        self, name: str, dtype: torch.dtype, attention: str
    ) -> None:
        encoder, decoder = (bert_like(name, is_decoder=it_is, attn_implementation=attention).to(dtype) for it_is in (False, True))
        with pytest.raises(
            GraftError, match=f"^{name} is not causal: its tokens see those that come after them, .*is_decoder=True"
        ) as caught:
            graft(encoder, tiny_tokenizer(), slots=64, background=TEXTS)
        assert "\n" not in str(caught.value)
        assert not any(module._forward_pre_hooks for module in encoder.modules())
        assert len(graft(decoder, tiny_tokenizer(), slots=64, background=TEXTS).usage["0"].slots)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"slots": 1000}, "slots must be a square number, got 1000; the nearest is 1024"),
            ({"slots": 0}, "slots: Input should be greater than 0, got 0"),
            ({"slots": -4}, "slots: Input should be greater than 0, got -4"),
            ({"slots": "many"}, "slots: Input should be a valid integer, .*, got 'many'"),
            ({"layers": [99]}, "layers: memory layer 99 does not exist: LlamaForCausalLM has blocks 0 to 1"),
            ({"layers": []}, r"layers must be increasing, distinct and not negative, got \[\]"),
            ({"layers": 1}, "layers: Input should be a valid tuple, got 1"),
            ({"top_k": 0}, "top_k: Input should be greater than 0, got 0"),
            ({"top_k": 9}, "top_k = 9 exceeds the 8 sub-keys"),
            ({"gate": "open"}, "gate: Input should be 'none' or 'swilu', got 'open'"),
            ({"head": 2}, "head: unknown setting; expected layers, answer_layer, slots, top_k, heads, "),
            ({"hidden_size": 32}, "hidden_size: unknown setting; expected layers, "),
        ],
    )
    def test_a_setting_that_makes_no_sense_is_refused_by_name(self, settings: dict[str, Any], said: str) -> None:
        base = tiny_model()
        with pytest.raises(GraftError, match=said) as caught:
            graft(base, tiny_tokenizer(), background=TEXTS, **{"slots": 64, **settings})
        assert "\n" not in str(caught.value)
        assert not any(module._forward_pre_hooks for module in base.modules())

    def test_a_model_that_no_store_could_recognise_is_refused_before_any_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = tiny_model()
        with torch.no_grad():
            for parameter in broken.parameters():
                parameter.fill_(torch.nan)
        monkeypatch.setattr("memgraft.grafting.find_blocks", lambda model: pytest.fail("the model was run"))
        with pytest.raises(GraftError, match="holds NaN or infinite weights"):
            graft(broken, tiny_tokenizer(), slots=64, background=TEXTS)

    def test_a_loaded_model_without_its_tokenizer_is_refused(self) -> None:
        with pytest.raises(GraftError, match="tokenizer"):
            graft(tiny_model())

    def test_arguments_that_would_have_no_effect_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(GraftError, match="comes with its own tokenizer"):
            graft(save_tiny_model(tmp_path / "model"), tiny_tokenizer())
        with pytest.raises(GraftError, match="a loaded model stays in its dtype"):
            graft(tiny_model(), tiny_tokenizer(), dtype="bfloat16")

    def test_a_background_is_a_path_as_well(self, tmp_path: Path) -> None:
        (tmp_path / "prose.txt").write_text("\n\n".join(TEXTS))
        model = graft(tiny_model(), tiny_tokenizer(), slots=64, background=tmp_path / "prose.txt")
        assert model.background is not None
        assert model.background.kind == str(tmp_path / "prose.txt")

    def test_a_gate_is_drawn_with_the_seed_and_from_nothing_else(self) -> None:
        torch.manual_seed(0)
        state = torch.random.get_rng_state()
        gates = [
            graft(tiny_model(), tiny_tokenizer(), slots=64, background=TEXTS, gate="swilu", seed=seed).layer(0).gate_in
            for seed in (3, 3, 4)
        ]
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(gates[0], gates[1])
        assert not torch.equal(gates[0], gates[2])

    def test_a_background_without_text_is_refused(self) -> None:
        with pytest.raises(GraftError, match="background has no text"):
            graft(tiny_model(), tiny_tokenizer(), slots=64, background=[])

    def test_memory_tensors_of_another_memory_are_refused_by_name(self) -> None:
        grafted = tiny_graft()
        tensors = grafted.memory_tensors()
        with pytest.raises(GraftError, match=r"0\.gate_in"):
            grafted.load_memory_tensors({**tensors, "0.gate_in": torch.zeros(1)})
        with pytest.raises(GraftError, match=r"0\.sub_keys"):
            grafted.load_memory_tensors({key: value for key, value in tensors.items() if key != "0.sub_keys"})
        with pytest.raises(GraftError, match=r"0\.query_mean has shape \(3,\), expected \(32,\)"):
            grafted.load_memory_tensors({**tensors, "0.query_mean": torch.zeros(3)})


class TestGraft:
    def test_the_default_layer_is_a_third_of_the_way_up(self) -> None:
        assert {depth: default_layers(depth) for depth in (1, 2, 12, 24, 30, 32, 80)} == {
            1: (0,), 2: (1,), 12: (4,), 24: (8,), 30: (10,), 32: (11,), 80: (27,),
        }  # fmt: skip

    @pytest.mark.parametrize("kind", [str, Path])
    def test_a_folder_becomes_an_empty_calibrated_memory(self, tmp_path: Path, kind: Callable[[Path], str | Path]) -> None:
        folder = save_tiny_model(tmp_path / "model")
        stages: list[tuple[str, int, int]] = []
        grafted = graft(
            kind(folder), slots=64, background=TEXTS, background_tokens=500, on_progress=lambda *at: stages.append(at), top_k=4, heads=2
        )
        assert (grafted.config.layers, grafted.config.hidden_size, grafted.config.slots) == ((1,), HIDDEN, 64)
        assert (grafted.config.top_k, grafted.config.heads) == (4, 2)
        assert grafted.source == str(folder)
        assert not len(grafted.rows()["0"])
        usage, parts = grafted.usage["0"], [text.encode() for text in TEXTS]
        assert usage.batches == len(parts)
        assert usage.tokens == sum(map(len, parts))
        assert int(usage.accesses.sum()) == usage.tokens * 2 * 4
        assert int(usage.document_frequency.max()) <= usage.batches
        assert stages[-1] == ("usage", usage.tokens, 500)
        with grafted.without_memory():
            expected = logits(grafted, padded_inputs(left=False))
        assert torch.equal(logits(grafted, padded_inputs(left=False)), expected)

    def test_a_gated_memory_is_exactly_the_base_too_once_calibrated(self) -> None:
        base = tiny_model()
        expected = logits(base, padded_inputs(left=True))
        grafted = graft(base, tiny_tokenizer(), slots=64, layers=[0, 1], background=TEXTS, gate="swilu")
        assert torch.equal(logits(fill(grafted, size=0), padded_inputs(left=True)), expected)

    def test_the_same_seed_gives_the_same_memory_and_another_seed_another(self) -> None:
        first, again, other = (graft(tiny_model(), tiny_tokenizer(), slots=64, background_tokens=600, seed=seed) for seed in (1, 1, 2))
        assert first.background == again.background
        assert first.background != other.background
        for name, tensor in first.memory_tensors().items():
            assert torch.equal(tensor, again.memory_tensors()[name])
        for name, tensor in first.usage["0"].tensors("u").items():
            assert torch.equal(tensor, again.usage["0"].tensors("u")[name])
        assert not torch.equal(first.layer(0).sub_keys, other.layer(0).sub_keys)

    def test_dropout_of_a_model_in_training_mode_plays_no_part_and_its_mode_stays(self) -> None:
        expected = graft(tiny_model("opt"), tiny_tokenizer(), slots=64, background_tokens=600)
        base = tiny_model("opt").train()
        torch.manual_seed(5)
        state = torch.get_rng_state()
        grafted = graft(base, tiny_tokenizer(), slots=64, background_tokens=600)
        assert base.training
        assert all(module.training for module in base.modules())
        assert torch.equal(torch.get_rng_state(), state)
        assert grafted.background == expected.background
        assert torch.equal(grafted.layer(0).sub_keys, expected.layer(0).sub_keys)

    def test_calibration_leaves_out_the_first_token_of_each_document(self) -> None:
        grafted = graft(tiny_model(), tiny_tokenizer(), slots=64, background=TEXTS)
        parts = [tiny_tokenizer()(text).input_ids for text in TEXTS]
        with torch.no_grad():
            hidden = [hidden_states_before(grafted.base, grafted.blocks, 1, input_ids=torch.tensor([part]))[0] for part in parts]
        expected = torch.cat([states[1:] for states in hidden])
        torch.testing.assert_close(grafted.layer(0).query_mean, expected.mean(0))
        assert not torch.allclose(grafted.layer(0).query_mean, torch.cat(hidden).mean(0), atol=1e-4)

    def test_background_states_are_the_bases_in_the_order_given_whatever_the_memory_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("memgraft.states.BATCH", 4)
        grafted = fill(tiny_graft(layers=(0, 1)))
        parts = random_tokens(*range(20, 2, -1))
        found = background_states(grafted, 1, parts)
        assert [len(states) for states in found] == list(range(20, 2, -1))
        for part, states in zip(parts, found, strict=True):
            with grafted.without_memory():
                alone = hidden_states_before(grafted.base, grafted.blocks, 1, input_ids=torch.tensor([part]))[0]
            torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-5)

    def test_usage_counts_a_document_once_in_a_table_that_layers_share(self) -> None:
        shared, separate = (
            graft(tiny_model(), tiny_tokenizer(), slots=64, layers=(0, 1), background=TEXTS, shared_values=shared)
            for shared in (True, False)
        )
        usage = shared.usage["0"]
        assert usage.batches == len(TEXTS)
        assert int(usage.document_frequency.max()) <= usage.batches
        slots = torch.arange(64)
        first, second = (separate.usage[name] for name in ("0", "1"))
        assert torch.equal(usage.accesses_of(slots), first.accesses_of(slots) + second.accesses_of(slots))
        assert (
            usage.document_frequency_of(slots) >= torch.maximum(first.document_frequency_of(slots), second.document_frequency_of(slots))
        ).all()

    @pytest.mark.parametrize("name", ["gpt2", "opt"])
    def test_a_context_shorter_than_a_document_is_respected(self, name: str) -> None:
        short: dict[str, Any] = {"n_positions": 48} if name == "gpt2" else {"max_position_embeddings": 48}
        written = graft(tiny_model(name, **short), tiny_tokenizer(), slots=64, background_tokens=600)
        assert written.background is not None
        assert written.background.document_tokens == 48
        graft(tiny_model(name, **short), tiny_tokenizer(), slots=64, background=[" ".join(TEXTS)])

    def test_a_model_has_one_memory_at_a_time(self) -> None:
        base = tiny_model()
        first = graft(base, tiny_tokenizer(), slots=64, background=TEXTS)
        with pytest.raises(GraftError, match="has a memory already: detach"):
            graft(base, tiny_tokenizer(), slots=64, background=TEXTS)
        first.detach()
        graft(base, tiny_tokenizer(), slots=64, background=TEXTS)
        ids = torch.tensor([[1, 2]])
        for use in (lambda: first(ids), lambda: first.generate(ids), lambda: first.learn("facts.jsonl", message="late")):
            with pytest.raises(GraftError, match="was taken off this model"):
                use()

    def test_a_graft_that_fails_leaves_the_model_free(self) -> None:
        base = tiny_model()
        with pytest.raises(DataError):
            graft(base, tiny_tokenizer(), slots=64, background="no such file.txt")
        assert not any(block._forward_pre_hooks for block in find_blocks(base))
        graft(base, tiny_tokenizer(), slots=64, background=TEXTS)
