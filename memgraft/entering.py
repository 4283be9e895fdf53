"""What enters the layer that is taught.

All below it is frozen: computed once for each micro-batch, and kept over passes while it fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memgraft.anchors import Opened
from memgraft.attention import quick_attention
from memgraft.blocks import hidden_states_before, starting_at
from memgraft.encoding import TokenBatch
from memgraft.grafted import GraftedModel


@contextmanager
def frozen(model: GraftedModel) -> Iterator[None]:
    """Within, the base model is in evaluation mode and none of its parameters asks for a gradient."""
    modes = [(module, module.training) for module in model.base.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.base.parameters()]
    model.base.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class Entered(NamedTuple):
    """What enters the block at which a step starts."""

    hidden_states: Tensor  # (B, T, D) in the base model's dtype
    open: dict[int, Opened]  # number of a lesson → which of its facts are open, where the memory was read on the way

    def part(self, rows: slice, tokens: int) -> Entered:
        """Of these sequences alone, without the columns behind the first `tokens`."""
        opened = {number: each.part(rows, slice(tokens)) for number, each in self.open.items()}
        return Entered(self.hidden_states[rows, :tokens].clone(), {number: each for number, each in opened.items() if each.tokens.any()})


class FrozenPrefix:
    """What no step changes, computed once per micro-batch and kept while it fits: all below the layer that is taught.

    Below the answer layer that is the memory's own reads as well; below the first memory layer there are none.
    """

    def __init__(self, model: GraftedModel, layer: int, budget_bytes: int) -> None:
        self.model = model
        self.layer = layer
        self.budget = budget_bytes
        self.kept: dict[tuple[int, int], Entered] = {}

    def entered(self, key: tuple[int, int], ids: Tensor, mask: Tensor) -> Entered:
        """What enters the layer, for one micro-batch."""
        if key in self.kept:
            entered = self.kept[key]
            return Entered(entered.hidden_states.to(self.model.device), entered.open)
        return self._keep(key, self._enter(ids, mask))

    def entered_together(self, keys: Sequence[tuple[int, int]], parts: Sequence[Part], limit: int) -> list[Entered]:
        """Likewise for several, those of about one length in one pass of at most `limit` padded tokens.

        A pass over few tokens takes as long as it takes to read the weights.
        """
        found: dict[int, Entered] = {}
        for group in _alike([part.ids.shape for part in parts], limit):
            width = max(parts[i].ids.shape[1] for i in group)
            ids = torch.cat([F.pad(parts[i].ids, (0, width - parts[i].ids.shape[1])) for i in group])
            mask = torch.cat([F.pad(parts[i].mask, (0, width - parts[i].mask.shape[1])) for i in group])
            with quick_attention(self.model.base, width):  # as when they are taught
                together = self._enter(ids, mask)
            rows = 0
            for i in group:
                count, tokens = parts[i].ids.shape
                found[i] = self._keep(keys[i], together.part(slice(rows, rows + count), tokens))
                rows += count
        return [found[i] for i in range(len(parts))]

    def _enter(self, ids: Tensor, mask: Tensor) -> Entered:
        model = self.model
        with nullcontext() if self.layer == model.config.answer_layer else model.without_memory():
            hidden = hidden_states_before(model.base, model.blocks, self.layer, input_ids=ids, attention_mask=mask)
        return Entered(hidden, model.told_facts() if self.layer == model.config.answer_layer else {})

    def _keep(self, key: tuple[int, int], entered: Entered) -> Entered:
        size = entered.hidden_states.nbytes + sum(opened.nbytes for opened in entered.open.values())
        if size <= self.budget:
            self.budget -= size
            cpu = torch.device("cpu")
            self.kept[key] = Entered(entered.hidden_states.to(cpu), {number: opened.to(cpu) for number, opened in entered.open.items()})
        return entered

    @contextmanager
    def starting(self, entered: Entered) -> Iterator[None]:
        """Within, a pass starts at the layer."""
        with ExitStack() as stack:
            stack.enter_context(starting_at(self.model.blocks, self.layer, entered.hidden_states))
            if self.layer == self.model.config.answer_layer:
                stack.enter_context(self.model.given_open(entered.open))
            yield


class Part(NamedTuple):
    """Sequences of a batch that are computed together, without columns of padding alone."""

    ids: Tensor  # (B, T) int64
    mask: Tensor  # (B, T) bool
    targets: Tensor  # (B, T) bool
    writable: Tensor  # (B, T) bool


def parts_of(batch: TokenBatch, limit: int, device: torch.device) -> Iterator[Part]:
    """The micro-batches of a batch on a device, see `micro_batches`."""
    writable = batch.attention_mask if batch.writable is None else batch.writable
    for chosen in micro_batches(batch, limit):
        width = int(batch.attention_mask[chosen].sum(-1).max())
        yield Part(*(t[chosen, :width].to(device) for t in (batch.input_ids, batch.attention_mask, batch.targets, writable)))


def micro_batches(batch: TokenBatch, limit: int) -> list[Tensor]:
    """Sequence indices to compute together, longest first: at most `limit` padded tokens and a third of padding, at least one."""
    return [torch.tensor(group) for group in _alike([(1, length) for length in batch.attention_mask.sum(-1).tolist()], limit)]


def _alike(shapes: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Numbers of micro-batches of these shapes (B, T) to compute together, widest first, within the same limits."""
    groups: list[list[int]] = []
    width = rows = 0
    for index in sorted(range(len(shapes)), key=lambda index: -shapes[index][1]):
        count, tokens = shapes[index]
        if groups and tokens * 3 >= width * 2 and (rows + count) * width <= limit:
            groups[-1].append(index)
            rows += count
        else:
            groups.append([index])
            width, rows = tokens, count
    return groups


def round_key(index: int, turn: int, batches: Sequence[TokenBatch]) -> int:
    """A number for what batch `index` teaches in a pass, the same where it is the same."""
    return index + len(batches) * (turn % len(batches[index].rounds))


def all_entered(
    model: GraftedModel, batches: Sequence[TokenBatch], prefix: FrozenPrefix, passes: int, micro_batch_tokens: int
) -> Iterator[Iterator[tuple[Tensor, Tensor, Tensor]]]:
    """Of each batch ids, targets and what enters the layer, of all that it will be taught in."""

    def of_batch(index: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        keys, parts = [], []
        for turn in range(min(passes, len(batches[index].rounds))):
            for number, part in enumerate(parts_of(batches[index].round(turn), micro_batch_tokens, model.device)):
                keys.append((round_key(index, turn, batches), number))
                parts.append(part)
        for part, entered in zip(parts, prefix.entered_together(keys, parts, micro_batch_tokens), strict=True):
            yield part.ids, part.targets, entered.hidden_states

    return map(of_batch, range(len(batches)))
