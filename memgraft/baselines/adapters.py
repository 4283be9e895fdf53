"""Adapters of PEFT in and out of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel

from memgraft.errors import MemgraftError
from memgraft.grafted import without_hooks

if TYPE_CHECKING:
    from peft import PeftModel


def import_peft() -> Any:
    """The package peft. Raises MemgraftError with the way to install it."""
    try:
        import peft
    except ImportError as error:
        raise MemgraftError('this rival needs the package peft: pip install "memgraft[baselines]"') from error
    return peft


@contextmanager
def adapted(model: PreTrainedModel, config: Any, seed: int) -> Iterator[PeftModel]:
    """Within, a fresh adapter is inside the model, its weights drawn with the seed; on any way out it is out again."""
    peft, modules = import_peft(), dict(model.named_modules())
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            tuned = cast("PeftModel", peft.get_peft_model(model, config))
        except BaseException:  # a kind of layer that the method can't take, after some that it can
            for name, module in modules.items():
                parent, _, own = name.rpartition(".")
                if own:
                    modules[parent]._modules[own] = module
            raise
    try:
        yield tuned
    finally:
        tuned.unload()


@contextmanager
def single_precision(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within, an fp32 copy, for methods that change the weights themselves: steps at usual rates vanish in bf16's eight bits.

    The copy has no memory where the model has one, which must be off.
    """
    with without_hooks(model):
        twin = copy.deepcopy(model)
    yield twin.float()
