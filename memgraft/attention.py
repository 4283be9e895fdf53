"""Attention that is quick to train on a CPU, where what is taught is short.

In bfloat16, the backward pass of torch's fused attention takes several times as long as plain matrix products on sequences of less
than a hundred tokens, which makes a whole step 14 % longer (`python -m benchmarks.attention`). It saves memory, which matters for long
texts only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

LONGEST = 256  # tokens; attention weights of all heads grow with their square


@contextmanager
def quick_attention(model: PreTrainedModel, tokens: int) -> Iterator[None]:
    """Within, attention is computed by plain matrix products where that is quicker: the same function, rounded elsewhere.

    Args:
        tokens: of the longest sequence that will be computed.

    On a GPU, for longer sequences, for a model of several parts, and where the caller chose another implementation than
    transformers' default ("sdpa"), nothing changes.
    """
    before = model.config._attn_implementation
    if model.device.type != "cpu" or tokens > LONGEST or before != "sdpa" or model.config.sub_configs:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
