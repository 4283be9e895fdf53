"""What was heard in a sequence so far, kept with the model's key/value cache.

Text is often computed in parts: a prompt, then a token at a time. Which tokens of the parts before were cues is kept as one more
layer of the model's cache, behind its own, and so is cropped, reordered and repeated with it.

Shape suffixes: B sequences, T tokens, M cues kept a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer


class HeardLayer(DynamicLayer):
    """The cache layer of what was heard: the numbers of cues, each plus 1, so that a layer that was zeroed has heard nothing.

    An offloading cache fetches the layer behind the one that it updates, and the first one behind its last. It takes this one, which
    never lies elsewhere, for its last: what it fetches in its place is the first one.
    """

    # As far as masks are concerned: a cache with a layer that can't be compiled gets none where a token is computed by itself, and
    # then a static one would have its empty places attended to.
    is_compileable = True

    def __init__(self, own: Sequence[Any] = (), only_non_sliding: bool = False) -> None:
        """With the cache's own layers, and whether it leaves sliding ones where they are."""
        super().__init__()  # type: ignore[no-untyped-call]
        movable = (layer for layer in own if isinstance(layer, CacheLayerMixin))
        self._first = next((layer for layer in movable if not (only_non_sliding and getattr(layer, "is_sliding", False))), None)

    def prefetch(self) -> None:
        if self._first is not None:
            self._first.prefetch()


def heard_so_far(cache: Cache | None, depth: int, heard_BTM: Tensor) -> Tensor:
    """The cues of all tokens so far (B, ≥ T, M), those of this pass last; `depth` is the number of the cache's own layers."""
    if cache is None:
        return heard_BTM
    while len(cache.layers) < depth and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())  # as the cache does itself when a layer is first used
    if len(cache.layers) == depth:
        cache.layers.append(HeardLayer(cache.layers, getattr(cache, "only_non_sliding", False)))
    states = heard_BTM[:, None].float() + 1  # (B, 1, T, M), as keys are
    kept, _ = cache.layers[depth].update(states, states[..., :0])  # type: ignore[union-attr]
    return kept[:, 0].long() - 1


def cache_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cache | None:
    """The key/value cache among a block's arguments."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
