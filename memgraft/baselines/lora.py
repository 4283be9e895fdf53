"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) taught with AdamW, as the papers' LoRA baseline is.

One optimizer step per batch, mean cross-entropy over the batch's target tokens: the memory sees the same batches, so the
two differ in what they change only. Beware: PEFT puts the adapter inside the model that it is given; `run.model.unload()`
takes it out again and leaves the base's weights as they were, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from memgraft.errors import MemgraftError, TeachingError

if TYPE_CHECKING:
    from peft import PeftModel

    from memgraft.encoding import TokenBatch


@dataclass(frozen=True)
class LoraRun:
    """A taught adapter around its base model, and the loss before each step, in the order of the steps."""

    model: PeftModel
    losses: tuple[float, ...]  # mean negative log-likelihood of a batch's target tokens, nats


def train_lora(
    model: PreTrainedModel,
    batches: Sequence[TokenBatch],
    *,
    rank: int = 16,
    alpha: float = 32,
    targets: str | Sequence[str] = "all-linear",
    lr: float,
    passes: int,
    weight_decay: float = 0.1,
    seed: int = 0,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> LoraRun:
    """Teaches a new low-rank adapter, one AdamW step per batch, batches in a new order in each pass.

    The adapter's weights are fp32 whatever the base's dtype: in bf16, steps of AdamW at usual rates would be rounded away.
    Equal arguments give equal runs on the same machine; the global random state is left as it was.

    Args:
        model: any causal LM; the adapter is put inside it and only the adapter is trained.
        batches: token batches; those without a target token are refused.
        rank: of each adapter's two factors.
        alpha: the adapter's output is scaled by alpha / rank.
        targets: names of the linear layers to adapt, or "all-linear": all but the output head.
        lr: AdamW's learning rate, constant.
        passes: times that every batch is seen.
        weight_decay: AdamW's, on the adapter's weights.
        seed: of the adapter's start and of the order of the batches.
        on_progress: called after each step with the steps done, the steps in all and the step's loss.

    Raises:
        MemgraftError: peft is not installed.
        TeachingError: no batches, a batch without target tokens, or a loss that is not finite. The adapter is out of the
            model again.
    """
    peft = _import_peft()
    _check(batches, passes)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        names = targets if isinstance(targets, str) else list(targets)
        adapter = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, task_type="CAUSAL_LM")
        tuned = cast("PeftModel", peft.get_peft_model(model, adapter))
        try:
            losses = _train(tuned, batches, lr, passes, weight_decay, seed, on_progress)
        except BaseException:
            # Also on Ctrl-C: the caller has no handle yet by which to take the adapter out.
            tuned.unload()
            raise
    return LoraRun(tuned, losses)


def _train(
    tuned: PeftModel,
    batches: Sequence[TokenBatch],
    lr: float,
    passes: int,
    weight_decay: float,
    seed: int,
    on_progress: Callable[[int, int, float], None] | None,
) -> tuple[float, ...]:
    weights = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    tuned.train()
    for _ in range(passes):
        for index in torch.randperm(len(batches), generator=order).tolist():
            loss = target_loss(tuned, batches[index])
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise TeachingError(f"{batches[index].name}, step {len(losses)}: the loss is {losses[-1]}; use a lower lr than {lr:g}")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if on_progress is not None:
                on_progress(len(losses), passes * len(batches), losses[-1])
    tuned.eval()
    return tuple(losses)


def target_loss(model: PeftModel, batch: TokenBatch) -> Tensor:
    """Mean cross-entropy of the batch's target tokens, each predicted from the tokens before it; fp32 scalar, nats."""
    device = model.device
    ids, targets = batch.input_ids.to(device), batch.targets[:, 1:].to(device)  # (S, T), (S, T-1)

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # The head is the dearest layer of a small model: only positions that predict a target go through it.
        return (args[0][:, :-1][targets][None], *args[1:])

    head: nn.Module = cast(PreTrainedModel, model.get_base_model()).get_output_embeddings()
    handle = head.register_forward_pre_hook(select)
    try:
        output = model(input_ids=ids, attention_mask=batch.attention_mask.long().to(device), use_cache=False)
    finally:
        handle.remove()
    return functional.cross_entropy(output.logits[0].float(), ids[:, 1:][targets])


def _check(batches: Sequence[TokenBatch], passes: int) -> None:
    if not batches or passes < 1:
        raise TeachingError(f"nothing to teach: {len(batches)} batches in {passes} passes")
    for batch in batches:
        if not batch.targets[:, 1:].any():
            raise TeachingError(f"{batch.name}: no supervised token")


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MemgraftError('LoRA needs the package peft: pip install "memgraft[baselines]"') from error
    return peft
