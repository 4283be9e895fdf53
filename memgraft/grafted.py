"""A base model with memory layers attached.

The base model is never modified: a memory layer is a forward pre-hook on a decoder block, which reads the hidden states that
enter the block and adds to them. With an empty memory it adds exact zeros, so logits are bit-equal to the base model's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from memgraft.covariance import BackgroundReads
    from memgraft.data import ExampleSet
    from memgraft.world import World

from memgraft.anchors import Opened
from memgraft.answer_layer import AnswerLayer
from memgraft.background import Background
from memgraft.blocks import find_blocks, hidden_size, hidden_states_of, with_hidden_states
from memgraft.commits import Commit, Rows, sum_rows
from memgraft.config import ANSWERS, MemoryConfig
from memgraft.cues import Cues, Scopes
from memgraft.errors import GraftError
from memgraft.hearing import Heard, cache_among, check_one_text_a_row, heard_so_far
from memgraft.history import History
from memgraft.memory import MemoryLayer, Tables, ValueTable
from memgraft.passes import Pass, Passes
from memgraft.store import RevertReport
from memgraft.usage import Usage


class Scoped(nn.Module):
    """The rows of a lesson that is read where one of its own facts came up. They don't change once the lesson is taught."""

    def __init__(self, tables: Tables, cues: Cues) -> None:
        super().__init__()
        self.tables = tables
        self.cues = cues


@dataclass(frozen=True)
class State:
    """What the memory of a model holds at a time."""

    rows: Mapping[str, Rows]  # that every text reads, by table
    scoped: tuple[Scoped, ...]  # shared with the model: they don't change once they are taught


class GraftedModel(nn.Module):
    """A causal language model with memory layers in front of some of its blocks.

    `forward` and `generate` are the base model's. `tables` holds the rows that every text reads, `scoped` the lessons that are read
    only where their own facts came up, `memories` a layer for each of `config.layers`, `answers` the answer layer, `usage` the
    background statistics of each table.
    """

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: MemoryConfig) -> None:
        super().__init__()
        self.base = base
        self.tokenizer = tokenizer
        self.config = config
        self.blocks = find_blocks(base)
        if any(_is_memorys(hook) for block in self.blocks for hook in block._forward_pre_hooks.values()):
            raise GraftError(f"this {type(base).__name__} has a memory already: detach() the GraftedModel that it is of, or load it anew")
        if config.answer_layer is not None and config.answer_layer >= len(self.blocks):
            raise GraftError(f"answer_layer: {type(base).__name__} has blocks 0 to {len(self.blocks) - 1}, got {config.answer_layer}")
        if config.layers[-1] >= len(self.blocks):
            raise GraftError(
                f"layers: memory layer {config.layers[-1]} does not exist: {type(base).__name__} has blocks 0 to {len(self.blocks) - 1}"
            )
        if config.hidden_size != hidden_size(base):
            raise GraftError(f"the memory is {config.hidden_size} wide, {type(base).__name__} is {hidden_size(base)}")
        self.tables = Tables(config.tables, config.hidden_size)
        self.memories = nn.ModuleList(MemoryLayer(config, self.table(config.table_of(i))) for i in range(len(config.layers)))
        self.scoped = nn.ModuleList()
        self.usage: dict[str, Usage] = {name: Usage.empty() for name in config.tables}
        self.background: Background | None = None
        self.background_reads: dict[str, BackgroundReads] | None = None  # made when first needed, see `memgraft.covariance`
        self.world: World | None = None  # made when first needed, see `memgraft.world`
        self.source: str = base.config.name_or_path or type(base).__name__
        self.history = History()
        self.answers = None if config.answer_layer is None else AnswerLayer(config.hidden_size)
        self._passes = Passes()
        self._mask_place = _place_of(base.forward, "attention_mask")
        self._given: dict[int, Opened] | None = None  # takes the place of listening in passes that start at the answer layer
        self._scopes = Scopes((), config.query_dim)
        self._remembered: dict[tuple[str, frozenset[int]], Scoped] = {}  # by lesson and the facts of it that are closed
        self._enabled = True
        self._handles = [
            # Not a closure: a deep copy of this model must read its own memory.
            self.blocks[layer].register_forward_pre_hook(functools.partial(self._add_memory, index), with_kwargs=True)
            for index, layer in enumerate(config.layers)
        ]
        for layer, memory in zip(config.layers, self.memories, strict=True):
            memory.to(next(self.blocks[layer].parameters()).device)
        self._handles += [
            base.register_forward_pre_hook(self._begin_pass, with_kwargs=True),
            base.register_forward_hook(self._drop_mask, always_call=True),
        ]
        if config.answer_layer is not None:
            self._hook_answers(config.answer_layer)

    def _hook_answers(self, layer: int) -> None:
        assert self.answers is not None
        block = self.blocks[layer]
        self.answers.to(next(block.parameters()).device)
        self._handles.append(block.register_forward_pre_hook(self._add_answers, with_kwargs=True))

    def move_answers(self, layer: int) -> None:
        """Read facts in front of another block from now on. Only before the answer layer is fitted, which is to one block's states."""
        self._handles.pop().remove()
        self.config = self.config.model_copy(update={"answer_layer": layer})
        self._hook_answers(layer)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GraftedModel:
        """As every module's, which .to() and its like call: to another device, and not to another dtype."""
        if any(fn(torch.zeros(1, dtype=dtype)).dtype != dtype for dtype in (torch.float32, self.base.dtype)):
            raise GraftError("a memory stays in float32 and is fitted to its model's own dtype: give the dtype to graft() or load()")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for number in range(len(self.scoped)):
            self._place(self.scope(number))  # anchors are no buffers
        return self

    def _begin_pass(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        place = self._mask_place
        mask = args[place] if place is not None and place < len(args) else kwargs.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        if self._enabled and len(self.scoped):
            check_one_text_a_row(kwargs, mask)
        self._passes.begin(mask)

    def _drop_mask(self, *_: Any) -> None:
        self._passes.current.mask = None  # what starts within the model later has none

    def _add_memory(
        self, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._enabled or self._given is not None:
            return None
        memory, hidden_states, own = self.layer(index), hidden_states_of(args, kwargs), self._passes.current
        if len(self.scoped) or len(memory.table.slots):
            _check_beside(memory.scale, hidden_states)
        if index == 0:  # what is open after a cue is open in all layers
            self._listen(own, hidden_states, cache_among(args, kwargs))
            own.opened = {number: opened.tokens.any(-1) for number, opened in own.open_facts.items()}
        read = []
        for number, tokens in own.opened.items():
            scoped = self.scope(number)
            if scoped.cues.anchors is None and len((table := scoped.tables.table(self.config.table_of(index))).slots):
                read.append((table, tokens.to(hidden_states.device)))
        if not read and not len(memory.table.slots) and memory.on_read is None:
            return None
        return with_hidden_states(args, kwargs, hidden_states + memory(hidden_states, read))

    def _add_answers(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        assert self.answers is not None
        own = self._passes.current
        own.answered = {}
        if not self._enabled:
            return None
        opened, told = (own.open_facts, own.told) if self._given is None else (self._given, None)
        lessons = {n: (cues, opened[n]) for n in opened if (cues := self.scope(n).cues).anchors is not None}
        hidden_states = hidden_states_of(args, kwargs)
        with torch.no_grad():
            own.answered = self.answers.find(hidden_states, lessons, told)
        if not own.answered and self.answers.on_read is None:
            return None
        read = [(self.scope(number).tables.table(ANSWERS), at) for number, at in own.answered.items()]
        return with_hidden_states(args, kwargs, hidden_states + self.answers(hidden_states, read))

    @torch.no_grad()
    def _listen(self, own: Pass, hidden_states: Tensor, cache: Cache | None) -> None:
        """Notes in the pass which lessons that have a scope are open, and which of their facts at which tokens."""
        if not len(self.scoped):
            return
        scopes, queries = self._scopes.to(hidden_states.device), self.cue_queries(hidden_states)
        heard = heard_so_far(cache, len(self.blocks), Heard(scopes.cues.heard(queries), queries), scopes.mark, scopes.cues.heard)
        now = slice(heard.cues.shape[1] - hidden_states.shape[1], None)
        opened = {number: each.part(slice(None), now) for number, each in scopes.open(heard.cues, own.mask).items()}
        own.open_facts = {number: facts for number, facts in opened.items() if bool(facts.tokens.any())}
        own.told = functools.partial(scopes.told, queries_BTP=heard.queries, mask_BT=own.mask)

    @property
    def open_facts(self) -> dict[int, Opened]:
        """Of the lessons that were open in this thread's last pass, by number in `scoped`: which facts, at which tokens."""
        return self._passes.current.open_facts

    @torch.no_grad()
    def told_facts(self) -> dict[int, Opened]:
        """The same, with how fully their names were said, where there are several: for `given_open`."""
        own = self._passes.current
        if own.told is None or sum(len(each.facts) for each in own.open_facts.values()) < 2:
            return dict(own.open_facts)
        return {number: own.told(number, each) for number, each in own.open_facts.items()}

    @property
    def opened(self) -> dict[int, Tensor]:
        """Of the same lessons, (B, T) bool: at which tokens."""
        return self._passes.current.opened

    @property
    def answered(self) -> dict[int, Tensor]:
        """Of those that answered in this thread's last pass, (B, T) int64: which of its anchors tokens were at; -1: none."""
        return self._passes.current.answered

    @contextmanager
    def given_open(self, opened: dict[int, Opened]) -> Iterator[None]:
        """Within, passes take this for what is open: those that start at the answer layer can't hear it."""
        self._given = opened
        try:
            yield
        finally:
            self._given = None

    def cue_queries(self, hidden_states: Tensor) -> Tensor:
        """(…, P) fp32 of unit length: what cues are compared with, of hidden states (…, D) that enter the first memory layer."""
        queries = self.layer(0).queries(hidden_states.reshape(-1, hidden_states.shape[-1])).flatten(1)
        return F.normalize(queries, dim=-1).view(*hidden_states.shape[:-1], self.config.query_dim)

    def table(self, name: str) -> ValueTable:
        """The value table of that name that every text reads."""
        return self.tables.table(name)

    def scope(self, number: int) -> Scoped:
        """A lesson that has a scope, by its number."""
        scoped = self.scoped[number]
        assert isinstance(scoped, Scoped)
        return scoped

    def layer(self, index: int) -> MemoryLayer:
        """The index-th memory layer."""
        memory = self.memories[index]
        assert isinstance(memory, MemoryLayer)
        return memory

    @property
    def device(self) -> torch.device:
        return self.base.device

    def rows(self) -> dict[str, Rows]:
        """A copy of all written rows, by table; those that several lessons wrote are added."""
        parts = [self.tables.rows(), *(self.scope(number).tables.rows() for number in range(len(self.scoped)))]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: sum_rows((part[name] for part in parts if name in part), self.config.hidden_size) for name in names}

    def assign_rows(self, rows: Mapping[str, Rows], cues: Cues | None = None) -> None:
        """Make these all that is written; tables that are not named become empty.

        Args:
            cues: after which the rows are read; None: every text reads them.
        """
        self.assign(State(rows, ()) if cues is None else State({}, (self._scoped(rows, cues),)))

    def state(self) -> State:
        """What the memory holds, for `assign`."""
        return State(self.tables.rows(), tuple(self.scope(number) for number in range(len(self.scoped))))

    def assign(self, state: State) -> None:
        """Make this what the memory holds."""
        self.tables.assign(state.rows)
        self._assign_scoped(state.scoped)

    def add_scope(self, cues: Cues) -> int:
        """The number of a new lesson without rows, which is read after these cues."""
        self._assign_scoped([*self.state().scoped, self._scoped({}, cues)])
        return len(self.scoped) - 1

    def anchor(self, number: int, cues: Cues) -> None:
        """Give a lesson that has no rows yet other cues: those with anchors, which can be found once it opens."""
        scoped = list(self.state().scoped)
        scoped[number] = self._scoped({}, cues)
        self._assign_scoped(scoped)

    def _scoped(self, rows: Mapping[str, Rows], cues: Cues) -> Scoped:
        tables = Tables(self.config.tables if cues.anchors is None else (ANSWERS,), self.config.hidden_size)
        scoped = Scoped(tables, cues)
        self._place(scoped)
        tables.assign(rows)
        return scoped

    def _place(self, scoped: Scoped) -> None:
        """Put a lesson where the layers are that read it."""
        for name in scoped.tables:
            if name == ANSWERS:
                assert self.answers is not None
                device = self.answers.scale.device
            else:
                device = self.table(name).values.device
            scoped.tables.table(name).to(device)
        anchors = scoped.cues.anchors
        if anchors is not None and self.answers is not None and anchors.keys.device != self.answers.scale.device:
            scoped.cues = replace(scoped.cues, anchors=anchors.to(self.answers.scale.device))

    def _assign_scoped(self, scoped: Iterable[Scoped]) -> None:
        self.scoped = nn.ModuleList(scoped)
        for number in range(len(self.scoped)):
            self._place(self.scope(number))  # the model may have been moved since
        self._scopes = Scopes([self.scope(number).cues for number in range(len(self.scoped))], self.config.query_dim)

    def check_attached(self) -> None:
        """Raises GraftError once the memory was taken off."""
        if not self._handles:
            raise GraftError("the memory was taken off this model (detach): graft the base model again, or load a store")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.check_attached()
        return self.base(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the base model's `generate`, with the memory on."""
        self.check_attached()
        generate: Any = self.base.generate  # PreTrainedModel itself has none, each causal LM mixes it in
        return generate(*args, **kwargs)

    @property
    def enabled(self) -> bool:
        """Whether the memory is on."""
        return self._enabled

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
        undo, state = self.history.copy(), self.state()
        try:
            report = self.history.revert(lesson)
            self.recall()
        except BaseException:
            self.history = undo
            self.assign(state)
            raise
        return report

    def recall(self, superseded: Iterable[str] = ()) -> None:
        """Make the memory what the history's active lessons add up to.

        Args:
            superseded: ids of facts that open nothing, as if an active lesson had superseded them.
        """
        self.assign(self.remembered(self.history, superseded))

    def remembered(self, history: History, superseded: Iterable[str] = ()) -> State:
        """What the active lessons of a history add up to."""
        scoped: dict[tuple[str, frozenset[int]], Scoped] = {}
        for key in history.scoped(superseded).items():
            known = self._remembered.get(key)
            if known is None:
                changes, cues = history.content(key[0])
                assert cues is not None
                known = self._scoped(changes, cues.without(key[1]) if key[1] else cues)
            scoped[key] = known
        self._remembered = scoped
        return State(history.state(self.config.tables, self.config.hidden_size), tuple(scoped.values()))

    def save(self, path: str | Path) -> None:
        """Write the memory to a store: new lessons and reverts into its own store, everything into a new one."""
        from memgraft.persistence import save

        save(self, path)

    def detach(self) -> PreTrainedModel:
        """Take the memory layers off for good and return the base model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return self.base

    def memory_tensors(self) -> dict[str, Tensor]:
        """Everything of the memory layers and the answer layer but the values: projections, sub-keys, scales, gates."""
        return {key: value.cpu() for key, value in self._layers_state().items()}

    def _layers_state(self) -> dict[str, Tensor]:
        answers = {} if self.answers is None else self.answers.state_dict()
        return {**self.memories.state_dict(), **{f"{ANSWERS}.{name}": value for name, value in answers.items()}}

    def load_memory_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `memory_tensors`; every name and shape must match."""
        expected = self._layers_state()
        if tensors.keys() != expected.keys():
            odd = sorted(tensors.keys() ^ expected.keys())
            raise GraftError(
                f"memory tensors do not fit the configuration: {', '.join(odd)} missing or unknown; "
                "another version of memgraft may have written them: graft the model again"
            )
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                raise GraftError(f"memory tensor {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
        for name, value in expected.items():
            value.copy_(tensors[name])
        self.background_reads = self.world = None


def _check_beside(memorys: Tensor, hidden_states: Tensor) -> None:
    """Raises GraftError where the base model was moved to another device without its memory."""
    if memorys.device != hidden_states.device:
        raise GraftError(
            f"the base model is on {hidden_states.device}, its memory on {memorys.device}: move both with to() of the GraftedModel; "
            "a pipeline moves the base model, unless it is given device=model.device"
        )


def _place_of(forward: Callable[..., Any], name: str) -> int | None:
    """The place of a parameter among those that may be given without their name; None where it has none."""
    parameters = list(inspect.signature(forward).parameters.values())
    places = [parameter.name for parameter in parameters if parameter.kind == parameter.POSITIONAL_OR_KEYWORD]
    return places.index(name) if name in places else None


def _is_memorys(hook: Callable[..., Any]) -> bool:
    inner = hook.func if isinstance(hook, functools.partial) else hook
    return isinstance(getattr(inner, "__self__", None), GraftedModel)


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Within, the hooks of a memory are off the model, so that a deep copy of it is of the model alone."""
    kept: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            if any(_is_memorys(hook) for hook in hooks.values()):
                kept.append((hooks, dict(hooks)))
                for id in [id for id, hook in hooks.items() if _is_memorys(hook)]:
                    del hooks[id]
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)
