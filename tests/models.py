"""Tiny random models of many architectures, a byte-level tokenizer for all of them, and memories with known content.

Weights are drawn wider than a fresh model's, so that attention mixes, logits differ and generated tokens vary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from memgraft.anchors import BEGINS, Anchors
from memgraft.blocks import hidden_states_before
from memgraft.commits import Rows
from memgraft.config import ANSWERS, MemoryConfig
from memgraft.cues import Cues
from memgraft.encoding import TokenBatch
from memgraft.grafted import GraftedModel
from memgraft.usage import Usage, UsageCounter

HIDDEN = 32
ANSWER_LAYER = 3  # of `graft_with_answers`, its last block
VOCABULARY = 257  # an end token and the 256 bytes

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}
_GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_head": 4,
    "n_positions": 2048,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "gpt2": _GPT,
    "gpt_neox": _COMMON,
    "gemma3_text": {**_GROUPED, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {**_GROUPED, "sliding_window": 4},
    "phi3": _GROUPED,
    "opt": {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "dropout": 0.1},
    "olmo2": _GROUPED,
    "mixtral": {**_GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen3_moe": {**_GROUPED, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "state_size": 8, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
    "gptj": {**_GPT, "rotary_dim": 4},
    "rwkv": {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "attention_hidden_size": HIDDEN, "bos_token_id": 0, "eos_token_id": 0},
}
_DEPTH = {"gpt2": "n_layer", "gptj": "n_layer", "bloom": "n_layer"}

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma3_text", "mistral", "phi3", "opt", "olmo2", "mixtral", "qwen3_moe",
)  # fmt: skip


def tiny_model(
    name: str = "llama", *, depth: int = 2, dtype: torch.dtype = torch.float32, attention: str | None = None, seed: int = 0, **settings: Any
) -> PreTrainedModel:
    """A random causal LM in evaluation mode, the same for the same arguments; its vocabulary is the tokenizer's."""
    settings = {**_SETTINGS[name], _DEPTH.get(name, "num_hidden_layers"): depth, **settings}
    if "layer_types" in settings:
        settings["layer_types"] = (settings["layer_types"] * depth)[:depth]
    chosen = {} if attention is None else {"attn_implementation": attention}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings), **chosen)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, 0.2)
    model = model.to(dtype).eval()
    assert isinstance(model, PreTrainedModel)
    return model


def tiny_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer without merges: a token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(["<|end|>", *letters])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = chat_template
    return tokenizer


def save_tiny_model(folder: Path, name: str = "llama", **settings: Any) -> Path:
    """A model folder as `save_pretrained` writes it."""
    tiny_model(name, **settings).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_config(**settings: Any) -> MemoryConfig:
    """A memory of 64 slots in front of block 1."""
    return MemoryConfig(
        **{"layers": (1,), "hidden_size": HIDDEN, "slots": 64, "top_k": 4, "heads": 2, "key_dim": 16, "threshold": 0.0, **settings}
    )


def randomise(model: GraftedModel, seed: int = 0) -> GraftedModel:
    """Random projections, sub-keys and gates in place of a calibration."""
    generator = torch.Generator().manual_seed(seed)
    for index in range(len(model.memories)):
        layer = model.layer(index)
        layer.query_mean.normal_(0, 0.1, generator=generator)  # small, or all tokens would read the same slots
        layer.query_projection.normal_(generator=generator)
        layer.sub_keys.copy_(torch.nn.functional.normalize(torch.randn(layer.sub_keys.shape, generator=generator), dim=-1))
        layer.scale.fill_(1.5)
        if layer.config.gate == "swilu":
            layer.gate_in.normal_(0, HIDDEN**-0.5, generator=generator)
            layer.gate_out.normal_(0, HIDDEN**-0.5, generator=generator)
    return model


def tiny_graft(base: PreTrainedModel | None = None, *, seed: int = 0, **config: Any) -> GraftedModel:
    """A tiny model, a Llama by default, with an empty memory of random addresses."""
    return randomise(GraftedModel(base if base is not None else tiny_model(), tiny_tokenizer(), tiny_config(**config)), seed)


def random_rows(slots: Iterable[int] | Tensor, *, seed: int = 0, size: float = 1.0, width: int = HIDDEN) -> Rows:
    """Normal rows in these slots."""
    ids = torch.as_tensor(sorted(int(slot) for slot in slots), dtype=torch.int64)
    return Rows(ids, size * torch.randn(len(ids), width, generator=torch.Generator().manual_seed(seed)))


def fill(model: GraftedModel, *, every: int = 1, size: float = 1.0) -> GraftedModel:
    """Random rows in every `every`-th slot of each table; zero rows where `size` is 0."""
    slots = range(0, model.config.slots, every)
    model.assign_rows({name: random_rows(slots, seed=i, size=size) for i, name in enumerate(model.config.tables)})
    return model


def graft_with_answers(seed: int = 0) -> GraftedModel:
    """A random model with an answer layer of random directions."""
    model = tiny_graft(tiny_model(depth=ANSWER_LAYER + 1, seed=seed), answer_layer=ANSWER_LAYER)
    assert model.answers is not None
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.answers.named_buffers():
        if name.endswith("projection"):
            value.normal_(generator=generator)
    model.answers.scale.fill_(1.5)
    return model


def lesson_at(model: GraftedModel, ids: Tensor, heard_at: int, read_at: int) -> tuple[Cues, dict[str, Rows]]:
    """A fact whose one cue is a token of these ids (1, T), and whose one anchor is another."""
    assert model.answers is not None
    with model.without_memory():
        first = hidden_states_before(model.base, model.blocks, model.config.layers[0], input_ids=ids)
        deep = hidden_states_before(model.base, model.blocks, ANSWER_LAYER, input_ids=ids)
    key = model.answers.queries(deep[0, read_at : read_at + 1])
    key[:, BEGINS:] = 0
    anchors = Anchors(torch.nn.functional.normalize(key, dim=-1), torch.tensor([0.999]), torch.tensor([0]))
    cues = Cues(model.cue_queries(first[0, heard_at : heard_at + 1]), torch.tensor([0.999]), torch.tensor([0]), anchors)
    return cues, {ANSWERS: random_rows([0])}


def dense(rows: Rows, slots: int) -> Tensor:
    """The same table with all its rows: (N, V)."""
    table = torch.zeros(slots, rows.width)
    table[rows.slots] = rows.values
    return table


def token_rows(rows: Sequence[Sequence[int]], *, left: bool = False, filler: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) and mask (B, T) bool of sequences, padded on one side."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), filler), torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = True
    return ids, mask


def random_tokens(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Sequences of random tokens of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def random_batch(*lengths: int, targets: int = 3, name: str = "a fact", seed: int = 0) -> TokenBatch:
    """A batch whose last `targets` tokens of each sequence are to be learned."""
    ids, mask = token_rows(random_tokens(*lengths, seed=seed))
    learned = torch.zeros_like(mask)
    for index, length in enumerate(lengths):
        learned[index, length - targets : length] = True
    return TokenBatch(name, ids, mask, learned)


def count_random_usage(model: GraftedModel, *, documents: int = 5, length: int = 12, seed: int = 100) -> dict[str, Usage]:
    """Usage of random documents, from the hidden states that enter each memory layer, with the memory off."""
    from memgraft.states import background_states

    parts = random_tokens(*[length] * documents, seed=seed)
    counters = {name: UsageCounter() for name in model.config.tables}
    for index, layer in enumerate(model.config.layers):
        for document, hidden in enumerate(background_states(model, layer, parts)):
            counters[model.config.table_of(index)].add(model.layer(index).address(hidden), document)
    return {name: counter.result() for name, counter in counters.items()}
