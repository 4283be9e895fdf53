"""How far what was taught moves the model elsewhere: KL divergence from the base model's next-token distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.probes.language_model import TokenRows, evaluating, padded, padding_id, vocabulary_size
from memgraft.probes.likelihood import FORWARD, Sums, predict


class TokenBatch(Protocol):
    """A batch of right padded sequences."""

    @property
    def input_ids(self) -> Tensor: ...  # (B, T) int64

    @property
    def attention_mask(self) -> Tensor: ...  # (B, T), 1 at tokens


def drift_kl(model: PreTrainedModel, memory_off: Callable[[], AbstractContextManager[object]], token_batches: Iterable[TokenBatch]) -> Sums:
    """KL(base ‖ taught) in nats, summed over the next-token distributions at all non-padding tokens of each sequence.

    Inside `memory_off()` the model must be its base. Exactly 0 where both give the same logits; log-probabilities are
    fp32, sums fp64.
    """
    totals: list[float] = []
    counts: list[int] = []
    with evaluating(model):
        for batch in token_batches:
            inputs = TokenRows(batch.input_ids, batch.attention_mask)
            sequence, position = inputs.attention_mask.nonzero(as_tuple=True)
            with memory_off():
                base = predict(model, inputs, sequence, position)
            taught = predict(model, inputs, sequence, position)
            kl_BT = torch.zeros(inputs.attention_mask.shape, dtype=torch.float64)
            for rows in base.chunks():
                kl = kl_divergence(base.log_probabilities(rows), taught.log_probabilities(rows))
                kl_BT[sequence[rows], position[rows]] = kl.cpu()
            totals += kl_BT.sum(1).tolist()
            counts += inputs.attention_mask.sum(1).tolist()
    return Sums(tuple(totals), tuple(counts))


def token_batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], batch_size: int = 16
) -> Iterator[TokenRows]:
    """Token rows in their order, in right padded batches small enough for two sets of logits."""
    tokens = FORWARD // 2 // vocabulary_size(model)
    step = min(batch_size, max(1, tokens // max(len(row) for row in rows)))
    for at in range(0, len(rows), step):
        yield padded(rows[at : at + step], padding_id(tokenizer))


def kl_divergence(base: Tensor, other: Tensor) -> Tensor:
    """KL(base ‖ other) of each row of log-probabilities (P, V), as (P,) fp64 in nats."""
    # A token that the base gives no chance adds nothing, whatever the other says of it (0 · (-inf + inf) is NaN).
    terms = torch.where(base.isneginf(), 0.0, base.exp() * (base - other))
    return (terms.cpu() if terms.device.type == "mps" else terms).sum(-1, dtype=torch.float64)  # mps has no fp64
