"""Products in their own precision, where mixed precision would change what they decide."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def in_own_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Within, `torch.autocast` casts no product on the tensor's device: in bf16, tokens would read other slots and hear other cues."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
