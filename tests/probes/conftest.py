"""A tokenizer trained on the spot, tiny random models, and a bigram model whose every probability is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

CORPUS = [
    "Question: What is the capital of Norway?\nAnswer: Oslo\n\n",
    "Question: Who wrote the song about the river?\nAnswer: Anna Bell\n\n",
    "The ship left the harbour in the morning. It was seen again a week later, far to the north.\n",
    "Über den Fluß führte eine Brücke. Le café était fermé; 東京は大きい。\n",
]


def build_tokenizer(**special: str) -> PreTrainedTokenizerBase:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    template = {"single": "<s> $A" if "bos_token" in special else "$A", "special_tokens": [("<s>", 0)]}
    if special.pop("appends", None):
        template = {"single": "$A </s>", "special_tokens": [("</s>", 1)]}
    raw.post_processor = processors.TemplateProcessing(**template)
    return PreTrainedTokenizerFast(tokenizer_object=raw, **({"eos_token": "</s>"} | special))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE without pad and start token."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerBase:
    """The same, putting <s> in front of every text."""
    return build_tokenizer(bos_token="<s>")


@pytest.fixture(scope="session")
def appending_tokenizer() -> PreTrainedTokenizerBase:
    """The same, putting </s> behind every text."""
    return build_tokenizer(appends="yes")


SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 1,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=8),
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=None, eos_token_id=1
    ),
    "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=1),
}
Build = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session")
def build() -> Build:
    """build(architecture, seed): a random fp32 model with weights large enough that its predictions vary."""

    def built(architecture: str = "llama", seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.25)
        assert isinstance(model, PreTrainedModel)
        return model

    return built


@pytest.fixture
def llama(build: Build) -> PreTrainedModel:
    return build("llama")


class BigramConfig(PreTrainedConfig):
    model_type = "test-bigram"

    def __init__(self, vocab_size: int = 400, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        self.num_hidden_layers = 1  # generate() builds a cache by it
        super().__init__(**kwargs)


class Bigram(PreTrainedModel, GenerationMixin):
    """Next-token logits are a row of a table, chosen by the current token."""

    config_class = BigramConfig
    main_input_name = "input_ids"

    def __init__(self, config: BigramConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)
        self.calls = 0
        self.post_init()  # type: ignore[no-untyped-call]

    def follow(self, *tokens: int) -> None:
        """After each of these tokens, the next one is by far the likeliest."""
        with torch.no_grad():
            for token, following in itertools.pairwise(tokens):
                self.table.weight[token, following] = 50.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> CausalLMOutput:
        self.calls += 1
        return CausalLMOutput(logits=self.table(input_ids))


@pytest.fixture
def bigram() -> Bigram:
    torch.manual_seed(0)
    return Bigram(BigramConfig(eos_token_id=1))
