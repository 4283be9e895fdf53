"""A base model with memory layers attached.

The base model is never modified: a memory layer is a forward pre-hook on a decoder block, which reads the hidden states that
enter the block and adds to them. With an empty memory it adds exact zeros, so logits are bit-equal to the base model's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from memgraft.covariance import BackgroundReads
    from memgraft.data import ExampleSet

from memgraft.background import Background
from memgraft.blocks import find_blocks, hidden_size, hidden_states_of, with_hidden_states
from memgraft.commits import Commit, Rows
from memgraft.config import MemoryConfig
from memgraft.cues import Cues
from memgraft.errors import GraftError
from memgraft.hearing import cache_among, heard_so_far
from memgraft.history import History
from memgraft.memory import MemoryLayer, ValueTable
from memgraft.store import RevertReport
from memgraft.usage import Usage


class GraftedModel(nn.Module):
    """A causal language model with memory layers in front of some of its blocks.

    `forward` and `generate` are the base model's. `tables` maps a value table's name to the table, `memories` holds a layer
    for each of `config.layers`, `usage` the background statistics of each table.
    """

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: MemoryConfig) -> None:
        super().__init__()
        self.base = base
        self.tokenizer = tokenizer
        self.config = config
        self.blocks = find_blocks(base)
        if config.layers[-1] >= len(self.blocks):
            raise GraftError(
                f"layers: memory layer {config.layers[-1]} does not exist: {type(base).__name__} has blocks 0 to {len(self.blocks) - 1}"
            )
        if config.hidden_size != hidden_size(base):
            raise GraftError(f"the memory is {config.hidden_size} wide, {type(base).__name__} is {hidden_size(base)}")
        self.tables = nn.ModuleDict({name: ValueTable(Rows.empty(config.hidden_size)) for name in config.tables})
        self.memories = nn.ModuleList(MemoryLayer(config, self.table(config.table_of(i))) for i in range(len(config.layers)))
        self.usage: dict[str, Usage] = {name: Usage.empty() for name in config.tables}
        self.background: Background | None = None
        self.background_reads: dict[str, BackgroundReads] | None = None  # made when first needed, see `memgraft.covariance`
        self.world_queries: Tensor | None = None  # made when first needed, see `memgraft.finding`
        self.source: str = base.config.name_or_path or type(base).__name__
        self.history = History()
        self.cues: Cues | None = None  # None: the memory is open to every text
        self.opened: Tensor | None = None  # (B, T) bool of the last pass; None: everything
        self._enabled = True
        self._handles = [
            # Not a closure: a deep copy of this model must read its own memory.
            self.blocks[layer].register_forward_pre_hook(functools.partial(self._add_memory, memory), with_kwargs=True)
            for layer, memory in zip(config.layers, self.memories, strict=True)
        ]
        for layer, memory in zip(config.layers, self.memories, strict=True):
            memory.to(next(self.blocks[layer].parameters()).device)

    def _add_memory(
        self, memory: nn.Module, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._enabled:
            return None
        hidden_states = hidden_states_of(args, kwargs)
        if memory is self.memories[0]:  # what is open after a cue is open in all layers
            self.opened = self._listen(hidden_states, cache_among(args, kwargs))
        if self.opened is None:
            return with_hidden_states(args, kwargs, hidden_states + memory(hidden_states))
        if not bool(self.opened.any()) and self.layer(0).on_read is None:
            return None
        # In full: nothing stray is read where only what belongs to a fact reads.
        added = memory(hidden_states, threshold=0.0) * self.opened[..., None].to(hidden_states.device)
        return with_hidden_states(args, kwargs, hidden_states + added)

    @torch.no_grad()
    def _listen(self, hidden_states: Tensor, cache: Cache | None) -> Tensor | None:
        """At which tokens (B, T) the memory is open; None for all."""
        if self.cues is None:
            return None
        if self.cues.keys.device != hidden_states.device:  # the model was moved
            self.cues = self.cues.to(hidden_states.device)
        heard = self.cues.heard(self.cue_queries(hidden_states))
        return self.cues.open(heard_so_far(cache, len(self.blocks), heard))[:, -hidden_states.shape[1] :]

    def cue_queries(self, hidden_states: Tensor) -> Tensor:
        """(…, P) fp32 of unit length: what cues are compared with, of hidden states (…, D) that enter the first memory layer."""
        queries = self.layer(0).queries(hidden_states.reshape(-1, hidden_states.shape[-1])).flatten(1)
        return F.normalize(queries, dim=-1).view(*hidden_states.shape[:-1], -1)

    def table(self, name: str) -> ValueTable:
        """A value table by name."""
        table = self.tables[name]
        assert isinstance(table, ValueTable)
        return table

    def layer(self, index: int) -> MemoryLayer:
        """The index-th memory layer."""
        memory = self.memories[index]
        assert isinstance(memory, MemoryLayer)
        return memory

    @property
    def device(self) -> torch.device:
        return self.base.device

    def rows(self) -> dict[str, Rows]:
        """A copy of all written rows, by table."""
        return {name: self.table(name).rows for name in self.config.tables}

    def assign_rows(self, rows: dict[str, Rows], cues: Cues | None = None) -> None:
        """Make these the written rows; tables that are not named become empty.

        Args:
            cues: what the memory is open after; None: it is open to every text.
        """
        self.cues = None if cues is None else cues.to(self.layer(0).query_mean.device)
        for name in self.config.tables:
            self.table(name).assign(rows.get(name, Rows.empty(self.config.hidden_size)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the base model's `generate`, with the memory on."""
        generate: Any = self.base.generate  # PreTrainedModel itself has none, each causal LM mixes it in
        return generate(*args, **kwargs)

    @contextmanager
    def without_memory(self) -> Iterator[PreTrainedModel]:
        """Within, the model is exactly the base model."""
        before, self._enabled = self._enabled, False
        try:
            yield self.base
        finally:
            self._enabled = before

    @contextmanager
    def without_threshold(self) -> Iterator[None]:
        """Within, every read counts in full, however short: so that teaching sees what it has written so far."""
        memories = [self.layer(i) for i in range(len(self.memories))]
        before = [memory.threshold for memory in memories]
        for memory in memories:
            memory.threshold = 0.0
        try:
            yield
        finally:
            for memory, threshold in zip(memories, before, strict=True):
                memory.threshold = threshold

    def learn(self, data: str | Path | ExampleSet, *, message: str, **settings: Any) -> Commit:
        """Teach a data set and keep what changed as a commit; see `memgraft.learning.learn`."""
        from memgraft.learning import learn

        return learn(self, data, message=message, **settings)

    def revert(self, lesson: str) -> RevertReport:
        """Take a lesson back: the rows become, bit for bit, the sum of the other lessons."""
        report = self.history.revert(lesson)
        self.recall()
        return report

    def recall(self) -> None:
        """Make the memory what the history's active lessons add up to."""
        self.assign_rows(self.history.state(self.config.tables, self.config.hidden_size), self.history.cues(self.config.query_dim))

    def save(self, path: str | Path) -> None:
        """Write the memory to a store: new lessons and reverts into its own store, everything into a new one."""
        from memgraft.persistence import save

        save(self, path)

    def detach(self) -> PreTrainedModel:
        """Take the memory layers off for good and return the base model."""
        for handle in self._handles:
            handle.remove()
        return self.base

    def memory_tensors(self) -> dict[str, Tensor]:
        """Everything of the memory layers but the values: projections, sub-keys, scales, gates."""
        return {key: value.cpu() for key, value in self.memories.state_dict().items()}

    def load_memory_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `memory_tensors`; every name and shape must match."""
        expected = self.memories.state_dict()
        if tensors.keys() != expected.keys():
            odd = sorted(tensors.keys() ^ expected.keys())
            raise GraftError(f"memory tensors do not fit the configuration: {', '.join(odd)} missing or unknown")
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                raise GraftError(f"memory tensor {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
        self.memories.load_state_dict(tensors)
        self.background_reads = self.world_queries = None
