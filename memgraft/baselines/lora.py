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
        passes: times that every batch is seen, one of its rounds each time.
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
    for turn in range(passes):
        for index in torch.randperm(len(batches), generator=order).tolist():
            losses.append(backward(tuned, batches[index].round(turn)))
            if not math.isfinite(losses[-1]):
                raise TeachingError(f"{batches[index].name}, step {len(losses)}: the loss is {losses[-1]}; use a lower lr than {lr:g}")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if on_progress is not None:
                on_progress(len(losses), passes * len(batches), losses[-1])
    tuned.eval()
    return tuple(losses)


def backward(model: PeftModel, batch: TokenBatch, micro_batch: int = 4) -> float:
    """Gradients of the mean cross-entropy of the batch's target tokens, each predicted from the tokens before it.

    Sequences of similar length are computed together, `micro_batch` at a time, and their gradients added: wordings differ in
    length by far, and most of a whole batch would be padding. Returns the mean, in nats.
    """
    total, loss_sum = int(batch.targets[:, 1:].sum()), 0.0
    lengths = batch.attention_mask.sum(1)
    for rows in lengths.argsort(stable=True).split(micro_batch):
        width = int(lengths[rows].max())
        ids, mask, targets = (part[rows, :width].to(model.device) for part in (batch.input_ids, batch.attention_mask, batch.targets))
        targets = targets[:, 1:]  # (S, T-1)
        if targets.any():
            logits = _logits_before(model, ids, mask, targets)
            loss = functional.cross_entropy(logits.float(), ids[:, 1:][targets], reduction="sum") / total
            loss.backward()
            loss_sum += loss.item()
    return loss_sum


def _logits_before(model: PeftModel, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """Logits (M, vocabulary) that predict the M marked tokens of targets (S, T-1), row by row."""

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # The head is the dearest layer of a small model: only positions that predict a target go through it.
        return (args[0][:, :-1][targets][None], *args[1:])

    head: nn.Module = cast(PreTrainedModel, model.get_base_model()).get_output_embeddings()
    handle = head.register_forward_pre_hook(select)
    try:
        logits: Tensor = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    finally:
        handle.remove()
    return logits[0]


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
