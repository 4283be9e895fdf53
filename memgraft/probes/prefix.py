"""One computation of the tokens that all prompts start with (the few-shot examples), shared by every batch.

The prefix is found in token ids, not in text, so it is by construction what the whole prompts begin with. Sharing needs a
cache that keeps every key and value (no sliding window, no recurrent state) and explicit positions, because a left padded
batch has its padding between prefix and rest; any other model is measured without it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from memgraft.hearing import HeardLayer
from memgraft.probes.language_model import TokenRows, accepts

SHORTEST = 8  # tokens; below it, copying the cache costs as much as it saves


@dataclass(frozen=True)
class SharedPrefix:
    """Token ids that all rows start with, and the model's keys and values for them (batch of one)."""

    ids: tuple[int, ...]
    cache: DynamicCache

    def __len__(self) -> int:
        return len(self.ids)

    def expanded(self, batch: int) -> DynamicCache:
        """A copy of the cache for `batch` sequences, which a forward pass may extend."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(batch)
        return cache

    def before(self, rows: TokenRows) -> TokenRows:
        """The rows with the prefix in front, and any left padding between the two."""
        prefix = torch.tensor(self.ids).expand(len(rows.input_ids), -1)
        return TokenRows(torch.cat([prefix, rows.input_ids], 1), torch.cat([torch.ones_like(prefix), rows.attention_mask], 1))


def common_prefix(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The longest token sequence that all rows start with."""
    return tuple(tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False)))


def compute_prefix(model: PreTrainedModel, rows: Sequence[Sequence[int]], longest: int | None = None) -> SharedPrefix | None:
    """The shared prefix of the rows, at most `longest` tokens and shorter than every row; None where sharing is not worth it or unsafe.

    Call it in evaluation mode without gradients, again whenever the model's weights or memory changed.
    """
    if len(rows) < 2 or not accepts(model, "position_ids"):
        return None
    limit = min(len(row) - 1 for row in rows)
    ids = common_prefix(rows)[: limit if longest is None else min(limit, longest)]
    if len(ids) < SHORTEST:
        return None
    cache = DynamicCache(config=model.config)
    if not _keeps_everything(cache):
        return None
    only_last = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    output = model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True, **only_last)
    computed = output.past_key_values
    if computed is not cache or not _keeps_everything(cache) or cache.get_seq_length() != len(ids):
        return None
    return SharedPrefix(ids, cache)


def _keeps_everything(cache: DynamicCache) -> bool:
    return type(cache) is DynamicCache and all(type(layer) in (DynamicLayer, HeardLayer) for layer in cache.layers)
