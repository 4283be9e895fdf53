"""Grafted models in lm-evaluation-harness, unchanged: as the model `memgraft` of its command line, or as an object.

    python -m memgraft.lm_eval run --model memgraft --model_args store=STORE --tasks TASK
    lm_eval.simple_evaluate(harness_model(grafted), tasks=[…])

The harness runs the base model object, whose blocks carry the memory. Needs the extra `lm-eval`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memgraft.errors import MemgraftError
from memgraft.grafted import GraftedModel
from memgraft.models import Dtype

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise MemgraftError("evaluating in the harness needs the package lm-eval: pip install 'memgraft[lm-eval]'") from error


SETTINGS = (  # of the harness that act on a model which is loaded already
    "backend",
    "truncation",
    "logits_cache",
    "max_length",
    "softmax_dtype",
    "mixed_precision_dtype",
    "batch_size",
    "max_batch_size",
    "add_bos_token",
    "prefix_token_id",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)


def harness_model(grafted: GraftedModel, **settings: Any) -> HFLM:
    """The grafted model, memory on, as the harness takes models.

    Args:
        settings: of `lm_eval.models.huggingface.HFLM`, such as `batch_size` or `add_bos_token`.

    Raises:
        MemgraftError: a setting by which the harness would load a model, or one that it does not have.
    """
    _refuse_unused(settings)
    return HFLM(pretrained=grafted.base, tokenizer=grafted.tokenizer, device=str(grafted.device), **settings)


@register_model("memgraft")
class StoredModel(HFLM):  # type: ignore[misc]  # the harness has no type information
    """A memory store as a model of the harness: `--model memgraft --model_args store=STORE[,base=MODEL][,dtype=DTYPE]`, on its `--device`.

    The base model is loaded as the store says; `dtype` and `trust_remote_code` are `memgraft.load`'s. Settings by which the harness
    itself would load a model are refused, and so are those that it does not have, which it would ignore.
    """

    def __init__(
        self,
        store: str,
        base: str | None = None,
        device: str | None = None,
        dtype: Dtype | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> None:
        from memgraft.persistence import load

        _refuse_unused(settings)
        self.grafted = load(store, model=base, dtype=dtype, device=device or "cpu", trust_remote_code=bool(trust_remote_code))
        settings = {**settings, "device": str(self.grafted.device)}
        super().__init__(pretrained=self.grafted.base, tokenizer=self.grafted.tokenizer, **settings)


def _refuse_unused(settings: Mapping[str, Any]) -> None:
    unused = next((name for name, value in settings.items() if value and name not in SETTINGS), None)
    if unused is not None:
        raise MemgraftError(f"{unused}: not used, the base model is loaded already; leave that out (expected {', '.join(SETTINGS)})")


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
