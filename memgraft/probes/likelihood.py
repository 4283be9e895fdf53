"""Negative log-likelihood of answers and of running text, in nats, and multiple choice by it.

Logits are computed where they are needed only, as far as the model's forward allows, and turned into fp32
log-probabilities a few rows at a time: a vocabulary of 256k tokens makes 1 MB of every position.

Shape suffixes: B sequences, T tokens, C columns kept, P scored positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.errors import DataError
from memgraft.probes.frames import ChatPrompt
from memgraft.probes.language_model import (
    TokenRows,
    accepts,
    adds_bos,
    adds_special_tokens,
    batches_by_length,
    check_context,
    context_length,
    evaluating,
    padded,
    padding_id,
    vocabulary_size,
)
from memgraft.probes.prefix import SharedPrefix, compute_prefix

CHUNK = 2**24  # fp32 log-probabilities held at once (64 MB)
FORWARD = 2**27  # logits of one forward pass (256 MB in bf16)


@dataclass(frozen=True)
class Sums:
    """Sums over the scored positions of each sequence, and how many positions there were."""

    totals: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of each sequence."""
        return tuple(total / count for total, count in zip(self.totals, self.counts, strict=True))

    @property
    def mean(self) -> float:
        """The mean over all positions of all sequences."""
        return math.fsum(self.totals) / sum(self.counts)


def answer_nll(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int = 16
) -> list[float]:
    """Mean NLL per token of each answer after its prompt, in nats."""
    return list(answer_sums(model, tokenizer, prompts, answers, batch_size=batch_size).means)


def answer_sums(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = 16,
    share_prefix: bool = True,
) -> Sums:
    """Summed NLL and number of tokens of each answer after its prompt, answers joined to prompts by one space.

    Prompt and answer are tokenised together; the answer's tokens are those that reach beyond the prompt's last character.
    A prompt that ends in white space is joined as it is. With `share_prefix`, tokens that all prompts start with are
    computed once.

    Raises DataError for an answer without a token that can be scored, text beyond the context, a tokenizer without offsets.
    """
    if len(prompts) != len(answers):
        raise ValueError(f"one answer a prompt, got {len(prompts)} prompts and {len(answers)} answers")
    encoded = [_encode_answer(tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    rows, firsts = [ids for ids, _ in encoded], [first for _, first in encoded]
    check_context(model, [len(row) for row in rows], "prompt with answer")
    totals, counts = [0.0] * len(rows), [len(row) - first for row, first in encoded]
    with evaluating(model):
        # The token before an answer predicts its first one, so it can't lie in the prefix.
        prefix = compute_prefix(model, rows, min(firsts) - 1) if share_prefix and rows else None
        shared = len(prefix) if prefix else 0
        for batch in batches_by_length([len(row) - shared for row in rows], batch_size, FORWARD // vocabulary_size(model)):
            inputs = padded([rows[index][shared:] for index in batch], padding_id(tokenizer))
            first_B1 = torch.tensor([[firsts[index] - shared] for index in batch])
            scored_BT = inputs.attention_mask.bool() & (torch.arange(inputs.input_ids.shape[1]) >= first_B1)
            for index, total in zip(batch, token_nll(model, inputs, scored_BT, prefix).sum(1).tolist(), strict=True):
                totals[index] = total
    return Sums(tuple(totals), tuple(counts))


def choose(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
    *,
    batch_size: int = 16,
) -> list[list[float]]:
    """Mean NLL per token of every choice after its prompt; the model chooses the lowest (length-normalised log-likelihood)."""
    flat = [(prompt, choice) for prompt, options in zip(prompts, choices, strict=True) for choice in options]
    nll = iter(answer_nll(model, tokenizer, [prompt for prompt, _ in flat], [choice for _, choice in flat], batch_size=batch_size))
    return [[next(nll) for _ in options] for options in choices]


def text_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: str | Sequence[str],
    *,
    window: int = 512,
    max_tokens: int | None = None,
    batch_size: int = 16,
) -> Sums:
    """Summed NLL of each window of the texts, and how many tokens were scored in it (all but the window's first).

    Windows are those of text_windows, no longer than the model's context. Raises DataError if there is nothing to score.
    """
    rows = text_windows(tokenizer, texts, window=min(window, context_length(model) or window), max_tokens=max_tokens)
    totals = [0.0] * len(rows)
    with evaluating(model):
        for batch in batches_by_length([len(row) for row in rows], batch_size, FORWARD // vocabulary_size(model)):
            inputs = padded([rows[index] for index in batch], padding_id(tokenizer))
            scored_BT = inputs.attention_mask.bool()
            scored_BT[:, 0] = False
            for index, total in zip(batch, token_nll(model, inputs, scored_BT).sum(1).tolist(), strict=True):
                totals[index] = total
    return Sums(tuple(totals), tuple(len(row) - 1 for row in rows))


def text_windows(
    tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str], *, window: int = 512, max_tokens: int | None = None
) -> list[list[int]]:
    """Token ids of the texts in windows that do not overlap, each with the start token in front if the tokenizer adds one.

    A window holds tokens of one text only. The texts' first `max_tokens` tokens are used; a single last token, which has
    nothing before it, is dropped. Raises DataError if nothing is left.
    """
    if window < 2:
        raise ValueError(f"a window needs at least 2 tokens, got {window}")
    start = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    left, rows = max_tokens, []
    for text in [texts] if isinstance(texts, str) else texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:left]
        step = window - len(start)
        rows += [start + ids[at : at + step] for at in range(0, len(ids), step)]
        left = None if left is None else left - len(ids)
        if left == 0:
            break
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise DataError("the text has fewer than two tokens: nothing in it can be predicted")
    return rows


def token_nll(model: PreTrainedModel, inputs: TokenRows, scored_BT: Tensor, prefix: SharedPrefix | None = None) -> Tensor:
    """-log p(token | tokens before it), (B, T) fp64 in nats on the CPU, at the scored tokens; 0 elsewhere.

    Inputs are right padded, after `prefix` if given; the first token can't be scored. Call it in evaluation mode without
    gradients.
    """
    if scored_BT[:, 0].any():
        raise ValueError("the first token of a sequence has no prediction to score")
    sequence_P, position_P = scored_BT[:, 1:].nonzero(as_tuple=True)
    predictions = predict(model, inputs, sequence_P, position_P, prefix)
    targets_P = inputs.input_ids[sequence_P, position_P + 1].to(predictions.logits.device)
    nll_BT = torch.zeros(scored_BT.shape, dtype=torch.float64)
    for rows in predictions.chunks():
        logp = predictions.log_probabilities(rows).gather(1, targets_P[rows, None]).squeeze(1)
        nll_BT[sequence_P[rows], position_P[rows] + 1] = -logp.cpu().double()  # on the CPU: mps has no fp64
    return nll_BT


@dataclass(frozen=True)
class Predictions:
    """Next-token logits of P chosen positions, left where the model put them until they are used."""

    logits: Tensor  # (B · C, V), the model's dtype and device
    row_P: Tensor  # the row of each chosen position

    def chunks(self) -> list[slice]:
        """Slices of the chosen positions, of at most CHUNK values each."""
        step = max(1, CHUNK // self.logits.shape[1])
        return [slice(at, at + step) for at in range(0, len(self.row_P), step)]

    def log_probabilities(self, rows: slice) -> Tensor:
        """Log-softmax of a slice of the chosen positions, (rows, V) fp32."""
        return self.logits[self.row_P[rows]].float().log_softmax(-1)


def predict(
    model: PreTrainedModel, inputs: TokenRows, sequence_P: Tensor, position_P: Tensor, prefix: SharedPrefix | None = None
) -> Predictions:
    """The model's predictions at (sequence, position) of right padded inputs, positions counted after `prefix`."""
    mask_BT = inputs.attention_mask
    extra: dict[str, object] = {"use_cache": False}
    if prefix is not None:
        mask_BT = torch.cat([mask_BT.new_ones(len(mask_BT), len(prefix)), mask_BT], 1)
        extra = {"use_cache": True, "past_key_values": prefix.expanded(len(mask_BT))}
    column_P = position_P
    if accepts(model, "logits_to_keep"):
        columns_C, column_P = torch.unique(position_P, return_inverse=True)
        extra["logits_to_keep"] = columns_C.to(model.device)
    logits_BCV = model(input_ids=inputs.input_ids.to(model.device), attention_mask=mask_BT.to(model.device), **extra).logits
    row_P = sequence_P * logits_BCV.shape[1] + column_P
    return Predictions(logits_BCV.flatten(0, 1), row_P.to(logits_BCV.device))


def _encode_answer(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids of prompt and answer, and the index of the answer's first token."""
    if not tokenizer.is_fast:
        raise DataError(f"the tokenizer {tokenizer.name_or_path!r} gives no character offsets: load it with use_fast=True")
    joined = prompt if not prompt or prompt[-1].isspace() else prompt + " "
    text = joined + answer
    special = adds_special_tokens(tokenizer, prompt if isinstance(prompt, ChatPrompt) else text)
    encoding = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    ids, ends = encoding["input_ids"], [end for _, end in encoding["offset_mapping"]]
    scored = [index for index, end in enumerate(ends) if end > len(prompt)]
    if not scored or scored[0] == 0:
        raise DataError(f"no token of the answer {answer[:40]!r} can be scored after the prompt {prompt[-40:]!r}")
    # An end token that the tokenizer appended is no part of the answer.
    return ids[: scored[-1] + 1], scored[0]
