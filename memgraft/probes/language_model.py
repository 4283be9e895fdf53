"""What the probes must know of any Hugging Face causal LM: how to run, encode for and batch it without leaving a trace."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.errors import DataError
from memgraft.probes.frames import ChatPrompt


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is in the mode that it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(False)
    try:
        # Not inference_mode: a hook on a block may keep a tensor that a later lesson needs gradients through.
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def unwrapped(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    find = getattr(model, "get_base_model", None)
    inner: PreTrainedModel = find() if callable(find) else model
    return inner


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward names this argument."""
    return argument in inspect.signature(unwrapped(model).forward).parameters


def context_length(model: PreTrainedModel) -> int | None:
    """The longest sequence in tokens that the configuration states, None if it states none."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def longest_sequence(model: PreTrainedModel) -> int:
    """The same, and more than anyone writes where the configuration states none."""
    return context_length(model) or 2**20


def check_context(model: PreTrainedModel, lengths: Sequence[int], what: str, new_tokens: int = 0) -> None:
    """Refuse sequences that, with the tokens still to come, exceed the model's context. Raises DataError."""
    limit = context_length(model)
    for index, length in enumerate(lengths):
        if limit is not None and length + new_tokens > limit:
            more = f" and {new_tokens} to generate" if new_tokens else ""
            raise DataError(f"{what} {index + 1} has {length} tokens{more}, the model's context has {limit}: shorten it")


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its start token in front of a text by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def adds_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text still needs the tokenizer's special tokens: what a chat format wrote has them, or wants none."""
    return not (isinstance(text, ChatPrompt) or (tokenizer.bos_token and text.startswith(tokenizer.bos_token)))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a prompt, with the tokenizer's own special tokens in front where they are missing, and none behind."""
    # verbose=False: long texts are cut into windows or refused by us, the tokenizer's own length warning would mislead.
    ids: list[int] = tokenizer(text, add_special_tokens=adds_special_tokens(tokenizer, text), verbose=False)["input_ids"]
    end = tokenizer.eos_token
    if end and ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(end):
        ids = ids[:-1]  # some tokenizers append it, and nothing is written behind it
    return ids


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills masked positions: the pad token, else the end token, else 0. Its value is never read."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(token, int)), 0)


def vocabulary_size(model: PreTrainedModel) -> int:
    """Logits that the model gives for a position."""
    return int(model.config.get_text_config().vocab_size)


def batches_by_length(lengths: Sequence[int], batch_size: int, tokens: int | None = None) -> Iterator[list[int]]:
    """Indices in batches of similar length, at most `batch_size` sequences and (but for one too long) `tokens` with padding.

    Longest first, so that a batch too large for the memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        width = max(1, lengths[order[0]])
        size = batch_size if tokens is None else min(batch_size, max(1, tokens // width))
        yield order[:size]
        order = order[size:]


class TokenRows(NamedTuple):
    """Sequences of unequal length in one rectangle."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, 1 at tokens, 0 at padding


def padded(rows: Sequence[Sequence[int]], filler: int, *, left: bool = False) -> TokenRows:
    """Token rows filled up on the right, or on the left."""
    width = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), width), filler), torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.int64)
        mask[index, place] = 1
    return TokenRows(ids, mask)
