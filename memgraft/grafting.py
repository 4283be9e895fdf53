"""From a pretrained model to a grafted one: background text, calibration, usage. No training, seconds to minutes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.anchoring import enough_questions, fit_answers
from memgraft.background import Background, read_background, used_texts, write_background
from memgraft.blocks import check_causal, check_remembers, find_blocks, hidden_size
from memgraft.calibration import calibrate
from memgraft.config import MemoryConfig, first_refusal
from memgraft.depth import choose_answer_layer, default_answer_layer
from memgraft.effect import LAYERS_MOVE, unit_of
from memgraft.errors import GraftError
from memgraft.fingerprint import BaseFingerprint
from memgraft.grafted import GraftedModel
from memgraft.models import Dtype, load_model
from memgraft.probes.language_model import context_length, longest_sequence
from memgraft.recall import kinds_to_whiten
from memgraft.states import background_states
from memgraft.usage import UsageCounter

Progress = Callable[[str, int, int], None]  # (stage, done, total)

DEFAULT_SLOTS = 2**16
DEFAULT_BACKGROUND_TOKENS = 2**15
DOCUMENT_TOKENS = 128


def default_layers(depth: int) -> tuple[int, ...]:
    """One memory layer at a third of the depth: early enough that wordings still share what they read, as layer 10 of 30."""
    return (max(0, round(depth / 3)),) if depth > 1 else (0,)


def graft(
    source: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    slots: int = DEFAULT_SLOTS,
    layers: Sequence[int] | None = None,
    background: str | Path | Sequence[str] | None = None,
    background_tokens: int = DEFAULT_BACKGROUND_TOKENS,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    on_progress: Progress | None = None,
    **memory: Any,
) -> GraftedModel:
    """Attach an empty, calibrated memory to a causal language model. Its logits stay bit-equal to the base model's.

    Args:
        source: a Hub id, a local folder, a `.gguf` file, or a loaded model (then with its `tokenizer`).
        slots: of each value table, a square number. Raise `background_tokens` with it, or usage protects little.
        layers: decoder blocks in front of which a memory layer sits; by default one at a third of the depth. Facts are read in front of
            a later one, the `answer_layer`, by default at three quarters of the depth, unless questions are told apart far better at
            another one. Where that is None, as in models whose context holds no question with its answer, facts too are read by the
            memory layers.
        background: text that stands for what must be preserved: a `.txt` or `.jsonl` file, `hf:DATASET[:SPLIT[:FIELD]]`, or the
            texts themselves. By default the model writes it.
        background_tokens: how much of it to use and to keep; a tenth is kept out of the usage, to measure drift on.
        seed: of background, calibration and random directions.
        device: where a model that is loaded here runs: cpu, cuda, cuda:1, mps. A loaded one stays where it is.
        on_progress: called with (stage, done, total).
        memory: further fields of `MemoryConfig`, such as `top_k` or `heads`.

    Raises:
        GraftError: a model that can't be loaded or grafted, or a setting of the memory that is refused.
        DataError: a background that can't be read.
    """
    if isinstance(source, str | Path):
        if tokenizer is not None:
            raise GraftError("a model that is loaded here comes with its own tokenizer: give a tokenizer with a loaded model only")
        loaded = load_model(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        model, tokenizer, name = loaded.model, loaded.tokenizer, loaded.source
    else:
        if tokenizer is None:
            raise GraftError("a loaded model needs its tokenizer: graft(model, tokenizer)")
        if dtype != "auto":
            raise GraftError(f"a loaded model stays in its dtype: load it in {dtype}, or give its name or folder")
        model, name = source, None
    BaseFingerprint.of(model)  # else refused when it is saved, minutes of work later
    blocks = find_blocks(model)
    check_causal(model, blocks)
    check_remembers(model, blocks)
    config = _memory_config(hidden_size(model), default_layers(len(blocks)) if layers is None else layers, slots, memory)
    if "answer_layer" not in memory and enough_questions(tokenizer, longest_sequence(model)):
        config = config.model_copy(update={"answer_layer": default_answer_layer(len(blocks), config.layers)})
    grafted = GraftedModel(model, tokenizer, config)
    grafted.source = name or grafted.source
    try:
        _calibrate(grafted, background, background_tokens, seed, on_progress)
        if grafted.answers is not None:
            if "answer_layer" not in memory:
                told = (lambda done, total: on_progress("depth", done, total)) if on_progress else None
                grafted.move_answers(choose_answer_layer(grafted, told))
            fit_answers(grafted, seed=seed)
    except BaseException:
        grafted.detach()  # the model is the caller's
        raise
    return grafted


def _calibrate(
    grafted: GraftedModel, background: str | Path | Sequence[str] | None, background_tokens: int, seed: int, on_progress: Progress | None
) -> None:
    """Background, calibrated memory layers, usage."""
    model, tokenizer = grafted.base, grafted.tokenizer

    def progress(stage: str) -> Callable[[int], None]:
        return lambda done: on_progress(stage, min(done, background_tokens), background_tokens) if on_progress else None

    length = min(DOCUMENT_TOKENS, context_length(model) or DOCUMENT_TOKENS)
    if background is None:
        texts = write_background(model, tokenizer, tokens=background_tokens, length=length, seed=seed, on_progress=progress("background"))
        kind = "self-written"
    else:
        kind = str(background) if isinstance(background, str | Path) else "texts"
        given = read_background(kind) if isinstance(background, str | Path) else background
        texts = used_texts(given, tokenizer, tokens=background_tokens)
    grafted.background = Background(tuple(texts), kind=kind, seed=seed, tokens=background_tokens, document_tokens=length)
    count_usage(grafted, seed=seed, on_progress=progress("usage"))


def _memory_config(width: int, layers: Sequence[int], slots: int, others: Mapping[str, Any]) -> MemoryConfig:
    """The configuration, by default with a top-k that small memories can hold. GraftError for a setting that it refuses."""
    refused = "the memory can't be made like this"
    known = [name for name in MemoryConfig.model_fields if name != "hidden_size"]
    for name in others:
        if name not in known:
            raise GraftError(f"{refused}: {name}: unknown setting; expected {', '.join(known)}")
    given: dict[str, Any] = {"layers": layers, "hidden_size": width, "slots": slots, **others}
    if isinstance(slots, int) and slots > 0:
        given = {"top_k": min(32, math.isqrt(slots)), **given}
    try:
        return MemoryConfig(**given)
    except ValidationError as error:
        raise GraftError(f"{refused}: {first_refusal(error)}") from error


def count_usage(grafted: GraftedModel, *, seed: int, on_progress: Callable[[int], None] | None = None) -> None:
    """Calibrate every memory layer on the background's hidden states and count how the background uses its slots."""
    assert grafted.background is not None
    parts, _ = grafted.background.split(grafted.tokenizer)
    if not parts:
        raise GraftError("the background has no text to calibrate on; give a longer one")
    counters = {name: UsageCounter() for name in grafted.config.tables}
    done = 0
    for index, layer in enumerate(grafted.config.layers):
        states = list(background_states(grafted, layer, parts))
        tokens = torch.cat([hidden[1:] for hidden in states])
        kinds = kinds_to_whiten(grafted, tokens, parts, seed=seed) if index == 0 else None
        calibrate(grafted.layer(index), tokens, seed=seed + index, kinds_P=kinds)
        grafted.layer(index).scale.fill_(unit_of(grafted, layer, share=LAYERS_MOVE, seed=seed + index))
        for document, hidden in enumerate(states):
            counters[grafted.config.table_of(index)].add(grafted.layer(index).address(hidden.to(grafted.device)), document)
            done += len(hidden)
            if on_progress:
                on_progress(done // len(grafted.config.layers))
    grafted.usage = {name: counter.result() for name, counter in counters.items()}
