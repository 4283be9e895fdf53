"""The rivals' training loop: one optimizer step per batch on whatever weights of a model ask for gradients.

Loss, batches and their order are those of `memgraft.teaching`, so a rival and the memory differ in what they change only.

Shape suffixes: S sequences, T tokens, M target tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from memgraft.attention import quick_attention
from memgraft.baselines.optimizers import SGD, AdamW
from memgraft.baselines.progress import TrainingFile
from memgraft.errors import TeachingError
from memgraft.probes.language_model import unwrapped

if TYPE_CHECKING:
    from memgraft.encoding import TokenBatch

OnStep = Callable[[int, int, float], None]  # (steps done, steps in all, the step's loss)
Replay = Callable[[int], "TokenBatch"]  # background sequences for a step, counted from 0


def schedule(batches: int, passes: int, seed: int, *, in_order: bool = False) -> list[tuple[int, int]]:
    """(batch, pass) of each step: passes in shuffled order, or a stream, in which each batch has all its passes in its turn."""
    if in_order:
        return [(index, turn) for index in range(batches) for turn in range(passes)]
    order = torch.Generator().manual_seed(seed)
    return [(index, turn) for turn in range(passes) for index in torch.randperm(batches, generator=order).tolist()]


def train(
    model: PreTrainedModel,
    batches: Sequence[TokenBatch],
    optimizer: AdamW | SGD,
    *,
    passes: int,
    seed: int = 0,
    in_order: bool = False,
    replay: Replay | None = None,
    autocast: torch.dtype | None = None,
    on_step: OnStep | None = None,
    file: TrainingFile | None = None,
) -> tuple[float, ...]:
    """Trains the weights that ask for gradients, and returns the loss before each step (mean NLL of the batch's targets, nats).

    Args:
        passes: times that every batch is seen, one of its rounds each time.
        seed: of the order of the batches and of dropout; the global random state is left as it was.
        in_order: a stream, see `schedule`.
        replay: background sequences whose mean NLL is added to each step's loss.
        autocast: dtype of the forward passes' matrix products, the weights' own by default.
        on_step: called after each step; the model is as taught so far and in training mode.
        file: where a training that was stopped goes on, and which the caller removes in the end.

    Raises:
        TeachingError: no batches, a batch without target tokens, or a loss that is not finite. DataError: an unreadable file.
    """
    _check(batches, passes)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    updates = optimizer.build(trained)
    steps = schedule(len(batches), passes, seed, in_order=in_order)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)  # of dropout, where the model has it
        losses: list[float] = [] if file is None else file.restore(trained, updates)
        model.train()
        try:
            for index, turn in steps[len(losses) :]:
                losses.append(backward(model, batches[index].round(turn), autocast))
                if not math.isfinite(losses[-1]):
                    raise TeachingError(
                        f"{batches[index].name}, step {len(losses)}: the loss is {losses[-1]}; use a lower lr than {optimizer.lr:g}"
                    )
                if replay is not None:
                    backward(model, replay(len(losses) - 1), autocast)
                updates.step()
                updates.zero_grad(set_to_none=True)
                if file is not None:
                    file.step(trained, updates, losses, len(steps))
                if on_step is not None:
                    on_step(len(losses), len(steps), losses[-1])
        finally:
            model.eval()
    return tuple(losses)


def backward(model: PreTrainedModel, batch: TokenBatch, autocast: torch.dtype | None = None, micro_batch: int = 4) -> float:
    """Adds the gradients of the mean cross-entropy of the batch's target tokens, each predicted from the tokens before it.

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
            with quick_attention(unwrapped(model), width):
                # Only the forward pass: gradient hooks (OSF's projection) must see the weights' own dtype.
                with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
                    logits_MV = _logits_before(model, ids, mask, targets)
                loss = functional.cross_entropy(logits_MV.float(), ids[:, 1:][targets], reduction="sum") / total
                loss.backward()
            loss_sum += loss.item()
    return loss_sum


def _logits_before(model: PreTrainedModel, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """Logits (M, vocabulary) that predict the M marked tokens of targets (S, T-1), row by row."""

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # The head is the dearest layer of a small model: only positions that predict a target go through it.
        return (args[0][:, :-1][targets][None], *args[1:])

    head = cast(nn.Module, unwrapped(model).get_output_embeddings())
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
