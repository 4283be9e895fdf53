"""Frozen hidden states kept over runs: whatever the memory holds, the blocks below its first layer compute the same.

Settings of the memory are tried on the same batches again and again; within `cached_prefixes` a pass over token ids that were
seen before starts at the first memory layer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from memgraft.blocks import can_start_at, hidden_states_of, starting_at
from memgraft.grafted import GraftedModel


@dataclass(frozen=True)
class Prefix:
    """The states that enter the first memory layer, and what computing them took."""

    states: Tensor
    seconds: float  # CPU


@dataclass
class Saved:
    """What was not computed again."""

    seconds: float = 0.0  # CPU, as the states took when they were computed


@contextmanager
def cached_prefixes(grafted: GraftedModel, kept: dict[bytes, Prefix], limit: int) -> Iterator[Saved]:
    """Within, passes without a cache of keys and values look up, and keep, the states that enter the first memory layer.

    Args:
        kept: states by input, filled up to `limit` bytes; shared by runs on the same base model. Where a model can't start at a
            block, nothing is kept.
    """
    layer, saved = grafted.config.layers[0], Saved()
    with grafted.without_memory():
        usable = layer > 0 and can_start_at(grafted.base, grafted.blocks, layer)
    if not usable:
        yield saved
        return
    current = ExitStack()
    key: bytes | None = None
    start = 0.0

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal key, start
        if "forward" in grafted.blocks[0].__dict__:  # the pass starts at a block already, from states that were saved elsewhere
            key = None
            return
        key, start = _key(kwargs, layer), time.process_time()
        if key is not None and key in kept:
            current.enter_context(starting_at(grafted.blocks, layer, kept[key].states.to(grafted.device)))
            saved.seconds += kept[key].seconds
            key = None

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal key
        if key is not None:
            seconds = time.process_time() - start
            states = hidden_states_of(args, kwargs).detach().cpu()
            if states.nbytes + sum(other.states.nbytes for other in kept.values()) <= limit:
                kept[key] = Prefix(states.clone(), seconds)
            key = None

    def leave(*_: Any) -> None:
        current.close()

    handles = [
        grafted.base.register_forward_pre_hook(enter, with_kwargs=True),
        # Before the memory adds to the states.
        grafted.blocks[layer].register_forward_pre_hook(keep, with_kwargs=True, prepend=True),
        grafted.base.register_forward_hook(leave, always_call=True),  # also where a pass is cut short
    ]
    try:
        yield saved
    finally:
        current.close()
        for handle in handles:
            handle.remove()


def _key(kwargs: dict[str, Any], layer: int) -> bytes | None:
    """What the states depend on; None for a pass that is not about whole sequences, or not all of whose inputs are known."""
    if kwargs.get("use_cache") is not False or kwargs.keys() - {"input_ids", "attention_mask", "use_cache"}:
        return None
    ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
    digest = hashlib.sha256(f"{layer}|{tuple(ids.shape)}".encode())
    digest.update(ids.cpu().numpy().tobytes())
    if mask is not None:
        digest.update(mask.cpu().to(dtype=ids.dtype).numpy().tobytes())
    return digest.digest()
