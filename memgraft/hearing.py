"""What was heard in a sequence so far, kept with the model's key/value cache.

Text is often computed in parts: a prompt, then a token at a time. Which tokens of the parts before were cues is kept as one more
layer of the model's cache, behind its own, and so is cropped, reordered and repeated with it.

Shape suffixes: B sequences, T tokens, M cues kept a token.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


def heard_so_far(cache: Cache | None, depth: int, heard_BTM: Tensor) -> Tensor:
    """The cues of all tokens so far (B, ≥ T, M), those of this pass last; `depth` is the number of the cache's own layers."""
    if cache is None:
        return heard_BTM
    while len(cache.layers) < depth and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())  # as the cache does itself when a layer is first used
    if len(cache.layers) == depth:
        cache.layers.append(DynamicLayer())
    states = heard_BTM[:, None].float()  # (B, 1, T, M), as keys are
    kept, _ = cache.layers[depth].update(states, states[..., :0])  # type: ignore[union-attr]
    return kept[:, 0].long()


def cache_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cache | None:
    """The key/value cache among a block's arguments."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
