"""Which lessons an answer comes from: whose slots it reads, and how far each lesson moves its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from memgraft.commits import Commit
from memgraft.errors import DataError, MemgraftError
from memgraft.grafted import GraftedModel
from memgraft.probes.language_model import check_context, encode
from memgraft.reads import Recorder, recording


@dataclass(frozen=True)
class Share:
    """One lesson's part in an answer."""

    commit: str
    message: str
    slots: int  # of the lesson that the prompt and the answer read, over all tables
    weight: float  # of all that prompt and answer read, the share that falls on them; 0 to 1. Of facts with anchors: of all tokens
    nats: float  # log-probability of the answer with the lesson minus without it, over all its tokens
    largest: float  # the largest change of a logit at the answer's tokens, in absolute value


@dataclass(frozen=True)
class Blame:
    """Where an answer comes from."""

    prompt: str
    answer: str
    nats: float  # log-probability of the answer with the memory minus without it
    shares: tuple[Share, ...]  # lessons whose slots are read, the one that moves the answer most first


@torch.no_grad()
def blame(model: GraftedModel, prompt: str, answer: str) -> Blame:
    """Trace an answer to the lessons behind it.

    A lesson's effect is exact: the logits of the same tokens with the sum of the other lessons in its place, as `revert`
    would leave it. Effects of lessons that share slots or tokens don't add up to that of the whole memory.

    Raises:
        DataError: prompt or answer is empty, or both are longer than the context. MemgraftError: the memory is off.
    """
    if not model.enabled:
        raise MemgraftError("the memory is off, so that no lesson is behind any answer: ask outside `without_memory()`")
    tokenizer = model.tokenizer
    head = encode(tokenizer, prompt)
    tail = tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]
    if not head or not tail:
        raise DataError(f"the {'answer' if head else 'prompt'} is empty")
    check_context(model.base, [len(head) + len(tail)], "prompt with its answer")
    ids = torch.tensor([[*head, *tail]], device=model.device)
    state = model.state()
    recorder = Recorder()
    with recording(model, recorder, torch.ones_like(ids, dtype=torch.bool)):
        logits = _answer_logits(model, ids, len(tail))
    opened, answered = dict(model.opened), dict(model.answered)
    with model.without_memory():
        base = _answer_logits(model, ids, len(tail))
    target = ids[0, -len(tail) :]
    shares = []
    number = -1  # of the lesson among those that have a scope
    try:
        for lesson in map(model.history.commit, model.history.active()):
            tokens = torch.ones_like(ids[0], dtype=torch.bool)
            if lesson.cues is not None:
                number += 1
                tokens = opened[number][0] if number in opened else ~tokens
            if lesson.cues is not None and lesson.cues.anchors is not None:
                slots, weight = _answers(answered.get(number))
            else:
                slots, weight = _reads(model, recorder, lesson, tokens)
            if slots:
                model.assign(model.remembered(model.history.without(lesson.id)))
                others = _answer_logits(model, ids, len(tail))
                nats = _log_probability(logits, target) - _log_probability(others, target)
                largest = float((logits - others).abs().max())
                shares.append(Share(lesson.id, lesson.message, slots, weight, nats, largest))
    finally:
        model.assign(state)
    shares.sort(key=lambda share: -abs(share.nats))
    return Blame(prompt, answer, _log_probability(logits, target) - _log_probability(base, target), tuple(shares))


def _answer_logits(model: GraftedModel, ids: Tensor, answer: int) -> Tensor:
    """(A, vocabulary) fp32 logits that predict the last A tokens of ids (1, T)."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0, -answer - 1 : -1].float()


def _log_probability(logits: Tensor, target: Tensor) -> float:
    return -float(F.cross_entropy(logits, target, reduction="sum"))


def _answers(at: Tensor | None) -> tuple[int, float]:
    """How many anchors of a lesson the tokens (1, T) were at, -1 for none, and the share of the tokens that were at one."""
    return (0, 0.0) if at is None else (len(at[at >= 0].unique()), float((at >= 0).float().mean()))


def _reads(model: GraftedModel, recorder: Recorder, lesson: Commit, tokens: Tensor) -> tuple[int, float]:
    """How many slots of a lesson were read at these tokens (T,), and the share of all address weights that fell on them."""
    slots, weight, total = 0, 0.0, 0.0
    for name in model.config.tables:
        address, _ = recorder.of_table(model, name)
        total += float(address.weights.sum())
        if name in lesson.changes:
            written = lesson.changes[name].slots.to(address.slots.device)
            reading = tokens.to(address.slots.device).repeat(len(address.slots) // len(tokens))  # a table's layers, one after the other
            hit = torch.isin(address.slots, written) & reading[:, None, None]
            slots += len(address.slots[hit].unique())
            weight += float(address.weights[hit].sum())
    return slots, weight / total if total else 0.0
