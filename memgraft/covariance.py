"""What background tokens read together: the covariance that a write must spare.

A slot's load says how much the background reads it; that many slots are read by the same tokens it does not say. What is written
to such slots adds up in those tokens' reads, so a write that counts loads alone disturbs them more than it knows. MEMIT spares the
whole covariance of a layer's inputs (Meng et al. 2023, arXiv 2210.07229, §4.2); here an input is what a token reads, which is
sparse, so the covariance is made when it is needed, for the slots that are about to change.

To spare are the background's text and, as much, common questions with their answers in the forms that facts are taught in: text
that a model writes by itself holds few of those, and what was pushed out of the way of text ended up in the way of questions.

The reads are computed when a lesson starts, in seconds, and not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from memgraft.examples import Fact
from memgraft.memory import Address
from memgraft.states import background_states
from memgraft.wordings import chat_renderer, keeps_conversations, load_pool, teach_wordings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memgraft.grafted import GraftedModel


class Reads:
    """The slots that each token of a text reads from one value table, with their weights."""

    def __init__(self, addresses: Sequence[Address], table_slots: int) -> None:
        slots = torch.cat([address.slots.cpu().flatten(1) for address in addresses])
        weights = torch.cat([address.weights.detach().cpu().float().flatten(1) for address in addresses])
        starts = np.arange(len(slots) + 1) * slots.shape[1]
        by_token = csr_array((weights.numpy().ravel(), slots.numpy().ravel(), starts), shape=(len(slots), table_slots))
        by_token.sum_duplicates()  # a slot read by several heads
        self._reads = by_token.tocsc()

    def covariance_of(self, slots: Tensor) -> Tensor:
        """(S, S) fp32 of the slots given: Σ over tokens of weight · weight, per token, times the number of slots.

        Not centred: to spare is what is read, not how it varies. Its diagonal is the slots' load (`Usage.load_of`) where no token
        reads a slot with two heads, and more where one does.
        """
        part = self._reads[:, slots.cpu().numpy()]
        products = (part.T @ part).toarray() * (self._reads.shape[1] / self._reads.shape[0])
        return torch.from_numpy(products).to(slots.device)


@dataclass(frozen=True)
class BackgroundReads:
    """What must be spared in one value table."""

    text: Reads  # of the background
    questions: Reads  # of common questions and their answers

    def covariance_of(self, slots: Tensor) -> Tensor:
        """(S, S) fp32, the sum of both."""
        return self.text.covariance_of(slots) + self.questions.covariance_of(slots)


def background_reads(model: GraftedModel) -> dict[str, BackgroundReads]:
    """What the model's background and common questions read, per value table; computed once per model.

    Empty for a model without background text.
    """
    if model.background is None:
        return {}
    if model.background_reads is None:
        parts, _ = model.background.split(model.tokenizer)
        length, left = model.background.document_tokens, sum(map(len, parts))  # no more questions than there is text
        asked = []
        for ids in common_questions(model.tokenizer):
            asked += [ids[start : start + length] for start in range(0, len(ids), length)] if left > 0 else []
            left -= len(ids)
        text, questions = _reads(model, parts), _reads(model, asked)
        model.background_reads = {name: BackgroundReads(text[name], questions[name]) for name in model.config.tables}
    return model.background_reads


def common_questions(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the package's common questions with their answers, each in two forms, half of them after others."""
    pool, chat = load_pool("contexts"), keeps_conversations(chat_renderer(tokenizer))
    facts = [Fact(line=number, question=pair.question, answers=(pair.answer,)) for number, pair in enumerate(pool, 1)]
    wordings = [wording for fact in facts for wording in teach_wordings(fact, count=2, seed=0, contexts=pool, chat=chat)]
    return [list(tokenizer(wording.text, add_special_tokens=wording.special_tokens).input_ids) for wording in wordings]


def _reads(model: GraftedModel, parts: Sequence[Sequence[int]]) -> dict[str, Reads]:
    addresses: dict[str, list[Address]] = {name: [] for name in model.config.tables}
    for index, layer in enumerate(model.config.layers):
        for hidden in background_states(model, layer, parts):
            addresses[model.config.table_of(index)].append(model.layer(index).address(hidden.to(model.device)))
    return {name: Reads(found, model.config.slots) for name, found in addresses.items()}
