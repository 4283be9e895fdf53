"""Finding the decoder blocks of any `transformers` causal LM, and reaching the hidden states between them.

No per-architecture code: the blocks are the one ModuleList as long as the configuration says the decoder is deep, and a
short trial run shows that each is called once a pass with hidden states of the model's width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel

from memgraft.errors import GraftError
from memgraft.hearing import Heard, cache_among, heard_so_far
from memgraft.probes.language_model import evaluating

_ROUNDING = 1e-5  # relative; causal architectures measure 0, random BERTs, RoBERTas and ELECTRAs 0.004 and more


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order.

    Raises:
        GraftError: with the reason why this architecture can't be grafted.
    """
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise GraftError(f"{name} is an encoder-decoder model; memgraft grafts decoder-only causal language models")
    if not model.can_generate() or model.get_output_embeddings() is None:
        raise GraftError(f"{name} has no language-model head; load it with AutoModelForCausalLM")
    text = model.config.get_text_config(decoder=True)
    depth = getattr(text, "num_hidden_layers", None)
    if not depth:
        raise GraftError(f"the configuration of {name} has no num_hidden_layers, so its decoder blocks can't be found")
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth}
    outermost = {path: module for path, module in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    if len(outermost) != 1:
        found = ", ".join(outermost) or "none"
        raise GraftError(f"{name}: expected one list of {depth} decoder blocks, found {found}; this architecture can't be grafted yet")
    blocks = next(iter(outermost.values()))
    _check_calls(model, blocks, hidden_size(model))
    return blocks


def hidden_size(model: PreTrainedModel) -> int:
    """Width of the residual stream."""
    size = getattr(model.config.get_text_config(decoder=True), "hidden_size", None)
    if not isinstance(size, int):
        raise GraftError(f"the configuration of {type(model).__name__} has no hidden_size")
    return size


def hidden_states_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among a block's arguments: the first positional one, else the keyword `hidden_states`."""
    value = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(value, Tensor):
        raise GraftError(f"a decoder block was called without hidden states (got {type(value).__name__})")
    return value


def with_hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments with other hidden states."""
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})


def _check_calls(model: PreTrainedModel, blocks: nn.ModuleList, width: int) -> None:
    """One trial pass over three tokens: every block is called once, with (1, 3, width) floating-point hidden states."""
    calls: list[tuple[int, tuple[int, ...]]] = []

    def listen(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((index, tuple(hidden_states_of(args, kwargs).shape)))

        return hook

    handles = [block.register_forward_pre_hook(listen(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        with evaluating(model):  # in training mode it would draw random numbers, and leave blocks out under LayerDrop
            model(input_ids=torch.tensor([[0, 1, 2]], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if [index for index, _ in calls] != list(range(len(blocks))):
        order = [index for index, _ in calls]
        raise GraftError(f"{type(model).__name__}: its {len(blocks)} blocks are not called once each and in order (calls: {order})")
    odd = [(index, shape) for index, shape in calls if shape != (1, 3, width)]
    if odd:
        index, shape = odd[0]
        raise GraftError(f"{type(model).__name__}: block {index} takes hidden states of shape {shape}, expected (1, 3, {width})")


def check_causal(model: PreTrainedModel, blocks: nn.ModuleList) -> None:
    """Refuses a model in which a token sees those after it, such as a BERT whose configuration says `is_decoder=False`.

    Where tokens see only what came before, the gradient from the logits at the first token to the later hidden states that
    enter the blocks is zero. Unlike a comparison of logits, it tells a small influence from rounding errors.

    Raises:
        GraftError: later tokens have an influence.
    """
    entered: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        entered.append(hidden_states_of(args, kwargs).detach().requires_grad_())
        return with_hidden_states(args, kwargs, entered[0])

    handle = blocks[0].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with evaluating(model), torch.enable_grad():
            logits = model(input_ids=torch.tensor([[0, 1, 2]], device=model.device), use_cache=False).logits
            (gradient,) = torch.autograd.grad(logits[0, 0].float().square().sum(), entered)
    finally:
        handle.remove()
    own, *later = gradient[0].float().norm(dim=-1).tolist()
    if max(later) > _ROUNDING * own:
        raise GraftError(
            f"{type(model).__name__} is not causal: its tokens see those that come after them, as in an encoder; "
            "load a decoder-only language model (for BERT and its kin: is_decoder=True in the configuration that it was trained with)"
        )


def check_remembers(model: PreTrainedModel, blocks: nn.ModuleList) -> None:
    """Refuses a model that goes on from a state which its blocks are not handed as a `Cache`, as RWKV does.

    What was heard of a subject is kept with the cache; without one it would be forgotten after the prompt.

    Raises:
        GraftError: with the state's name; or the cache takes no layer of the memory's own, or blocks are not handed all tokens.
    """
    cached: list[bool] = []

    def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cached.append(any(isinstance(value, Cache) for value in (*args, *kwargs.values())))

    handle = blocks[0].register_forward_pre_hook(listen, with_kwargs=True)
    try:
        with evaluating(model):
            output = model(input_ids=torch.tensor([[0, 1, 2]], device=model.device), use_cache=True)
    finally:
        handle.remove()
    if any(cached):
        _check_parts(model, blocks)
    states = [name for name in output if name not in ("logits", "loss") and output[name] is not None]
    if states and not any(cached):
        raise GraftError(
            f"{type(model).__name__} goes on from a state of its own ({', '.join(states)}) instead of a key/value cache, "
            "with which the memory keeps what it heard; this architecture can't be grafted yet"
        )


def _check_parts(model: PreTrainedModel, blocks: nn.ModuleList) -> None:
    """Tries what generation does: a prompt of which only the last logits are asked for, and a token behind it, listened to."""
    heard, lengths = Heard(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)), list[int]()

    def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = hidden_states_of(args, kwargs).shape[1]
        heard_so_far(cache_among(args, kwargs), len(blocks), Heard(*(part.expand(1, tokens, 1) for part in heard)), "a trial", lambda _: _)

    def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lengths.append(hidden_states_of(args, kwargs).shape[1])

    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    handles = [block.register_forward_pre_hook(count, with_kwargs=True) for block in blocks]
    handles.append(blocks[0].register_forward_pre_hook(listen, with_kwargs=True))
    try:
        with evaluating(model):
            output = model(input_ids=torch.tensor([[0, 1, 2]], device=model.device), use_cache=True, **last)
            cache = {name: value for name, value in output.items() if isinstance(value, Cache)}
            model(input_ids=torch.tensor([[0]], device=model.device), use_cache=True, **cache, **last)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        raise GraftError(
            f"{type(model).__name__} can't go on with a cache that holds what the memory heard ({type(error).__name__}: {error}); "
            "this architecture can't be grafted yet"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    short = next((index for index, tokens in enumerate(lengths[: len(blocks)]) if tokens != 3), None)
    if short is not None:
        raise GraftError(
            f"{type(model).__name__}: block {short} is handed only the tokens whose logits are asked for, and a memory there would miss "
            "the others; this architecture can't be grafted yet"
        )


class _Reached(Exception):
    """Ends a pass early, once the hidden states that were asked for are there."""


def hidden_states_before(model: PreTrainedModel, blocks: nn.ModuleList, layer: int, **inputs: Tensor) -> Tensor:
    """Hidden states (B, T, D) that enter block `layer`; nothing above it is computed. No gradient."""
    reached: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reached.append(hidden_states_of(args, kwargs))
        raise _Reached

    handle = blocks[layer].register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    return _reach(model, handle, reached, inputs)


def hidden_states_before_each(model: PreTrainedModel, blocks: nn.ModuleList, layers: Sequence[int], **inputs: Tensor) -> list[Tensor]:
    """Likewise of several blocks, in increasing order, in one pass."""
    reached: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reached.append(hidden_states_of(args, kwargs))

    handles = [blocks[layer].register_forward_pre_hook(hook, with_kwargs=True, prepend=True) for layer in layers[:-1]]
    try:
        last = hidden_states_before(model, blocks, layers[-1], **inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [*reached, last]


def hidden_states_at_head(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    """Hidden states (B, T, D) that the language-model head reads, after the last norm; no logit is computed. No gradient."""
    reached: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        reached.append(args[0])
        raise _Reached

    return _reach(model, model.get_output_embeddings().register_forward_pre_hook(hook, prepend=True), reached, inputs)


def _reach(model: PreTrainedModel, handle: RemovableHandle, reached: list[Tensor], inputs: dict[str, Tensor]) -> Tensor:
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return reached[0]


@contextmanager
def starting_at(blocks: nn.ModuleList, layer: int, hidden_states: Tensor) -> Iterator[None]:
    """Within, a pass of the model skips the blocks below `layer` and enters it with the given hidden states (B, T, D).

    What the model computes beside its blocks (masks, positions, embeddings) still runs, from the same inputs.
    """

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return with_hidden_states(args, kwargs, hidden_states)

    def skip(*_: Any, **__: Any) -> Tensor:
        # Not what came in: where blocks return tuples, the model takes [0] of each output, and a dimension would go with each.
        return hidden_states

    handle = blocks[layer].register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
    own = [block.__dict__.get("forward") for block in blocks[:layer]]
    for block in blocks[:layer]:
        block.forward = skip
    try:
        yield
    finally:
        handle.remove()
        for block, forward in zip(blocks[:layer], own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


@contextmanager
def added_before(blocks: nn.ModuleList, layer: int, change: Tensor) -> Iterator[None]:
    """Within, a change (B, T, D) is added to the hidden states that enter block `layer`."""

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden_states = hidden_states_of(args, kwargs)
        return with_hidden_states(args, kwargs, (hidden_states.float() + change).to(hidden_states.dtype))

    handle = blocks[layer].register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def can_start_at(model: PreTrainedModel, blocks: nn.ModuleList, layer: int) -> bool:
    """Whether a trial pass that starts at block `layer` gives, bit for bit, the logits of a full pass.

    It does not where blocks hand on more than hidden states, such as a recurrent state or keys and values that later blocks use.
    """
    inputs = {"input_ids": torch.tensor([[0, 1, 2]], device=model.device)}
    hidden_states = hidden_states_before(model, blocks, layer, **inputs)
    with torch.no_grad():
        expected = model(**inputs, use_cache=False).logits
        try:
            with starting_at(blocks, layer, hidden_states):
                logits = model(**inputs, use_cache=False).logits
        except Exception:  # whatever an architecture's own code raises when it misses what the blocks would have handed on
            return False
    return torch.equal(logits, expected)
