"""How a store recognises its base model and tokenizer, without keeping a copy of either.

The base model's fingerprint is a sample of its weights, compared within the rounding of bf16: it is the same for the same
weights in another dtype or file format, and another one for other weights, a finetuned copy included. Beware: a change
that touches none of the sampled positions by more than that rounding goes unseen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from memgraft.canonical import canonical_json
from memgraft.config import Config
from memgraft.errors import GraftError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TENSORS = 8  # weight matrices sampled, spread over the model
POSITIONS = 64  # weights sampled of each
RELATIVE = 2.0**-7  # four times the rounding error of bf16, which is at most 2⁻⁹ of the weight
ABSOLUTE = 1e-7  # the rounding error of fp16 near zero is at most 2⁻²⁵

_FACTS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "hidden_act",
    "rope_theta",
)

_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces\tand a tab\nand\r\nnew lines ",
    "In 1969, 3.14159 × 2,000,000 = 6283180; 50% off $9.99!",
    "Ünïcödé: Straße, naïve, 東京, Привет, مرحبا, 🙂👍🏽",
    "def f(x): return {'key': [x ** 2, None]}  # code",
    "antidisestablishmentarianism can't won't I'll",
)


class WeightSample(Config):
    """Some weights of one matrix of the base model."""

    name: str = Field(description="name of the parameter")
    shape: tuple[int, ...]
    values: tuple[float, ...] = Field(description="weights at fixed positions, six significant digits")

    @classmethod
    def of(cls, name: str, weight: Tensor) -> WeightSample:
        """Samples `weight` (any shape). GraftError when it has no data or holds NaN."""
        if weight.is_meta:
            raise GraftError(f"parameter {name} has no data (device 'meta'): load the model without offloading, then graft again")
        flat = weight.detach().reshape(-1)
        values = tuple(float(f"{float(flat[position]):.6g}") for position in _positions(flat.numel()))
        if not all(math.isfinite(value) for value in values):
            raise GraftError(f"parameter {name} holds NaN or infinite weights: the base model is damaged")
        return cls(name=name, shape=tuple(weight.shape), values=values)

    def mismatch(self, other: WeightSample) -> str | None:
        """How `other` differs from this sample of the store's base model; None when it doesn't."""
        if self.shape != other.shape:
            return f"{self.name} has the shape {list(other.shape)}, the store's base has {list(self.shape)}"
        for mine, its in zip(self.values, other.values, strict=True):
            if abs(mine - its) > RELATIVE * max(abs(mine), abs(its)) + ABSOLUTE:
                return f"{self.name} holds other weights ({its:g} where the store's base has {mine:g})"
        return None


class BaseFingerprint(Config):
    """What identifies a base model: configuration facts that shape its computation, and a sample of its weights."""

    facts: dict[str, str | int | float] = Field(description="settings that shape the computation, as far as the model has them")
    weights: tuple[WeightSample, ...] = Field(description="weight matrices spread over the model")

    @classmethod
    def of(cls, model: PreTrainedModel) -> BaseFingerprint:
        """The fingerprint of a model; hooks and memory layers attached to it don't count.

        GraftError when its weights are not loaded, not finite, or not floating point (quantised).
        """
        matrices = sorted(_matrices(model), key=lambda item: item[0])
        if not matrices:
            raise GraftError(f"{type(model).__name__} has no floating-point weight matrix to recognise it by: load it without quantisation")
        last = len(matrices) - 1
        chosen = sorted({round(i * last / (TENSORS - 1)) for i in range(TENSORS)})
        return cls(facts=_facts(model.config), weights=tuple(WeightSample.of(*matrices[i]) for i in chosen))

    def mismatch(self, other: BaseFingerprint) -> str | None:
        """How the model `other` differs from the store's base model, in one line; None when it is the same."""
        for name, mine in self.facts.items():
            its = other.facts.get(name, mine)  # a fact that one version of transformers doesn't know tells nothing
            same = math.isclose(mine, its, rel_tol=1e-4) if isinstance(mine, float) and not isinstance(its, str) else mine == its
            if not same:
                return f"the model's {name} is {its}, the store's base has {mine}"
        samples = {sample.name: sample for sample in other.weights}
        for sample in self.weights:
            if sample.name not in samples:
                return f"the model has other weight matrices than the store's base ({sample.name} is not where it was)"
            problem = sample.mismatch(samples[sample.name])
            if problem:
                return problem
        return None


class TokenizerFingerprint(Config):
    """What identifies a tokenizer. The chat template is kept for information: another one is no mismatch."""

    vocab_size: int = Field(description="tokens, added ones included")
    special_tokens: dict[str, int] = Field(description="ids of the tokens that begin and end a text")
    probes_sha256: str = Field(description="digest of the token ids of a few fixed texts")
    chat_template_sha256: str | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TokenizerFingerprint:
        """The fingerprint of a `transformers` tokenizer. The padding token is left out: users set it as they like."""
        ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in _PROBES]
        special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos")}
        template = getattr(tokenizer, "chat_template", None)
        return cls(
            vocab_size=len(tokenizer),
            special_tokens={name: token for name, token in special.items() if token is not None},
            probes_sha256=hashlib.sha256(canonical_json(ids)).hexdigest(),
            chat_template_sha256=None if template is None else hashlib.sha256(canonical_json(template)).hexdigest(),
        )

    def mismatch(self, other: TokenizerFingerprint) -> str | None:
        """How the tokenizer `other` differs from the store's, in one line; None when it gives the same tokens."""
        if self.vocab_size != other.vocab_size:
            return f"the tokenizer has {other.vocab_size} tokens, the store's has {self.vocab_size}"
        for name in ("bos", "eos"):
            mine, its = self.special_tokens.get(name), other.special_tokens.get(name)
            if mine != its:
                return f"the tokenizer's {name} token is {its}, the store's is {mine}"
        if self.probes_sha256 != other.probes_sha256:
            return "the tokenizer splits text into other tokens than the store's"
        return None

    def warning(self, other: TokenizerFingerprint) -> str | None:
        """A difference that does not stop anything but may change answers; None when there is none."""
        if self.chat_template_sha256 == other.chat_template_sha256:
            return None
        return "the tokenizer's chat template is not the one that the store was made with: chat prompts may read other slots"


def _facts(config: PreTrainedConfig) -> dict[str, str | int | float]:
    text: Any = config.get_text_config()
    facts = {name: getattr(text, name, None) for name in _FACTS}
    rope = getattr(text, "rope_parameters", None)  # where newer versions of transformers keep rope_theta
    if facts["rope_theta"] is None and isinstance(rope, dict):
        facts["rope_theta"] = rope.get("rope_theta")
    if isinstance(facts["rope_theta"], int):
        facts["rope_theta"] = float(facts["rope_theta"])
    return {name: value for name, value in facts.items() if isinstance(value, str | int | float)}


def _matrices(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The floating-point weight matrices of the base model itself, each tied one once. Norms and biases start out equal."""
    grafted: set[int] = set()
    for module in model.modules():
        if type(module).__module__.partition(".")[0] == __name__.partition(".")[0]:
            grafted.update(id(parameter) for parameter in module.parameters())
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and parameter.is_floating_point() and id(parameter) not in grafted:
            yield name, parameter


def _positions(count: int) -> list[int]:
    """Fixed positions in [0, count), spread evenly but not in step with rows and columns (golden-ratio sequence)."""
    return [((i * 0x9E3779B97F4A7C15) % 2**64 * count) >> 64 for i in range(1, POSITIONS + 1)]
