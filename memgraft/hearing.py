"""What was heard in a sequence so far, kept with the model's key/value cache.

Text is often computed in parts: a prompt, then a token at a time. Which tokens of the parts before were cues, and the queries by which
this was told, are kept as one more layer of the model's cache, behind its own, and so are cropped, reordered and repeated with it.

Shape suffixes: B sequences, T tokens, M cues kept a token, as many as the token has that has most, P query width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from memgraft.errors import GraftError

PACKED = ("cu_seq_lens_q", "cu_seq_lens_k")  # where the texts of a row begin, as transformers hands it to attention


class Heard(NamedTuple):
    """What was heard in some tokens."""

    cues: Tensor  # (B, T, M) int64: the numbers of the cues that each token is, -1 for none
    queries: Tensor  # (B, T, P) fp32


class HeardLayer(DynamicLayer):
    """The cache layer of what was heard: the numbers of cues, each plus 1, so that a layer that was zeroed has heard nothing.

    The queries are in the place of values.

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
        self._lessons: str | None = None  # whose cues' numbers are kept (`Scopes.mark`)

    def append(self, heard: Heard, before: int, lessons: str, hear: Callable[[Tensor], Tensor]) -> Heard:
        """What was heard in all tokens, in these last; of `before` tokens those that are not here have heard nothing.

        Raises:
            GraftError: other lessons were in the memory before, and something was heard of them, whose numbers mean other cues now, or
                would have been of these, which would have changed the text that was computed.
        """
        kept = self.keys if self.get_seq_length() else None
        if kept is not None and self._lessons != lessons and bool((kept > 0).any() or (hear(cast(Tensor, self.values)[:, 0]) >= 0).any()):
            raise GraftError(
                "the key/value cache is of a text that was computed with other lessons in the memory: "
                "compute the text again, with a new cache"
            )
        self._lessons = lessons
        states, queries = heard.cues[:, None].float() + 1, heard.queries[:, None]  # (B, 1, T, M) and (B, 1, T, P), as keys and values are
        missing = max(0, before - self.get_seq_length())  # computed with the memory off, or before it held a lesson
        wider = 0 if kept is None else kept.shape[-1] - states.shape[-1]
        states, queries = F.pad(states, (0, max(0, wider), missing, 0)), F.pad(queries, (0, 0, missing, 0))
        if kept is not None:
            self.keys = F.pad(kept, (0, max(0, -wider)))
        found, all_queries = self.update(states, queries)
        return Heard(found[:, 0].long() - 1, all_queries[:, 0])

    def prefetch(self) -> None:
        if self._first is not None:
            self._first.prefetch()


def heard_so_far(cache: Cache | None, depth: int, heard: Heard, lessons: str, hear: Callable[[Tensor], Tensor]) -> Heard:
    """What was heard in all tokens so far, those of this pass last.

    Args:
        depth: the number of the cache's own layers.
        lessons: tells whose cues are numbered (`memgraft.cues.Scopes.mark`).
        hear: of queries (B, T, P), the numbers of these cues (B, T, M), -1 for none.

    Raises:
        GraftError: see `HeardLayer.append`.
    """
    if cache is None:
        return heard
    while len(cache.layers) < depth and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())  # as the cache does itself when a layer is first used
    if len(cache.layers) == depth:
        cache.layers.append(HeardLayer(cache.layers, getattr(cache, "only_non_sliding", False)))
    layer, last = cache.layers[depth], cache.layers[depth - 1]
    assert isinstance(layer, HeardLayer)
    before = int(last.get_seq_length()) if hasattr(last, "get_seq_length") else 0  # of the block that comes last, not computed yet
    return layer.append(heard, before, lessons, hear)


def check_one_text_a_row(kwargs: dict[str, Any], mask: Tensor | None) -> None:
    """Refuses passes in which a row holds several texts: the subject of one would open a lesson in the next.

    Args:
        kwargs: of the model's forward pass.
        mask: of padding (B, T), where there is one.

    Raises:
        GraftError: packed sequences, or transformers' continuous batching (`generate_batch`).
    """
    positions = kwargs.get("position_ids")
    packed = any(kwargs.get(name) is not None for name in PACKED)
    if not packed and mask is None and isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] > 1:
        # Padding on the left, where the mask is no longer this one, may have position 1 throughout, and then comes a 0.
        restarts = (positions[:, 1:] < positions[:, :-1]) & ((positions[:, :-1] > 1) | (positions[:, :1] == 0))
        packed = bool(restarts.any())
    if packed:
        raise GraftError(
            "several texts in one row (packed sequences, generate_batch) can't be told apart by the memory: give each a row of its own, "
            "padded, as generate() takes them"
        )


def cache_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cache | None:
    """The key/value cache among a block's arguments."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
