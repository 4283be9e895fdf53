"""How the chosen rows change, given the gradient at the read.

The read is linear in the values, y = W V with W (T × U) the address weights, so a row's gradient is Wᵀ G with
G = dL/dy (T × V), taken at the read itself, before scale and gate. No autograd reaches the table and no optimizer state exists for
rows that were not chosen: unchosen rows stay bit-identical by construction.

Shape suffixes: T tokens, C tokens of context, S chosen slots, V value width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from memgraft.config import Config
from memgraft.memory import Address


def address_matrix(address: Address, chosen: Tensor) -> Tensor:
    """W restricted to the chosen slots (sorted ids): (T, S) fp32, weights of a slot read by several heads added."""
    tokens = len(address.slots)
    matrix = torch.zeros(tokens, len(chosen), dtype=torch.float32, device=chosen.device)
    if not len(chosen):
        return matrix
    slots, weights = address.slots.flatten(1), address.weights.detach().flatten(1)
    index = torch.searchsorted(chosen, slots).clamp_(max=len(chosen) - 1)
    weights = torch.where(chosen[index] == slots, weights, torch.zeros_like(weights))
    return matrix.scatter_add_(1, index, weights)


class SGD(Config):
    """Plain gradient descent on the chosen rows, the optimizer of Lin et al. 2025 §4."""

    name: Literal["sgd"] = "sgd"
    learning_rate: float = Field(
        3.0, gt=0, description="step on a row, for the mean loss of a batch; reads are in units of the layer's scale"
    )
    max_norm: float | None = Field(None, gt=0, description="clip the gradient of the chosen rows to this norm")


class Adam(Config):
    """Adam whose moments and step counts exist, and move, only where rows are chosen: for each row an Adam of its own."""

    name: Literal["adam"] = "adam"
    learning_rate: float = Field(0.02, gt=0, description="step size")
    beta_1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta_2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(1e-12, gt=0, description="added to the root of the second moment; gradients here are small")
    max_norm: float | None = Field(None, gt=0, description="clip the gradient of the chosen rows to this norm")


class LeastInterference(Config):
    """The smallest write that moves the reads along −G, holds those of the context, and spares those of the background.

        ΔV = argmin ‖W ΔV + η G‖² + γ ‖W_c ΔV‖² + λ′ ΔVᵀ (I + μ C) ΔV      λ′ = λ · mean diag(W Wᵀ)

    The ridge form of MEMIT's update (Meng et al. 2023, arXiv 2210.07229, §4.2). C is the background's covariance, Σ w wᵀ per
    token, times the number of slots (`BackgroundReads.covariance_of`), or its diagonal, the slots' load (`Usage.load_of`), which
    is cheaper and misses that slots which are read together add up. W_c holds what the context reads that a wording starts with,
    other questions and their answers: what is taught must be told from those, else the words that lead up to any answer learn to
    lead up to this one. The rows of G longer than `max_step` / η are cut to that length: a trust region per token, without which
    a few tokens with outlying gradients move the memory by several times what is there.

    What a given length does to the loss differs from model to model by far. Where a batch's loss is known, all rows of G are cut by one
    factor so that the fall they promise to first order, Σ ‖step‖ ‖G‖, is at most `max_fall` times the loss, which can't fall by more than
    itself. Polyak's step length (1987, Introduction to Optimization, §5.3), which needs no unit, as an upper bound; more than 1 because
    the ridge lets a read take only part of its step, and wordings that share a row count it each.
    """

    name: Literal["least-interference"] = "least-interference"
    learning_rate: float = Field(10.0, gt=0, description="η: step of the read, not of a row, for the mean loss of a batch")
    max_step: float | None = Field(1.0, gt=0, description="longest step asked of one token's read, in the layer's scale (docs/concepts.md)")
    max_fall: float | None = Field(8.0, gt=0, description="largest fall that a step at anchors may promise, in times the loss; none: any")
    ridge: float = Field(6.0, gt=0, description="λ: ridge relative to the mean diagonal of W Wᵀ; more moves what tokens share first")
    background_weight: float = Field(
        30.0, ge=0, description="μ: how much dearer it gets to change what the background reads, where it reads the memory"
    )
    covariance: Literal["full", "diagonal"] = Field(
        "full", description="what is known of the background: slots read together, or each slot alone, cheaper where t is large"
    )
    context_weight: float = Field(1.0, ge=0, description="γ: how firmly the reads of the context before what is taught are held; 0: not")


Writer = Annotated[SGD | Adam | LeastInterference, Field(discriminator="name")]


class Moments:
    """Adam's moments for the rows that were ever chosen, in the order of first choice."""

    def __init__(self) -> None:
        self._index: dict[int, int] = {}
        self._first: Tensor | None = None
        self._second: Tensor | None = None
        self._steps: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """As named tensors, for a checkpoint; none before the first step."""
        if self._first is None or self._second is None or self._steps is None:
            return {}
        return {"slots": torch.tensor(list(self._index)), "first": self._first, "second": self._second, "steps": self._steps}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Moments:
        """The inverse of `tensors`."""
        moments = cls()
        if tensors:
            moments._index = {slot: at for at, slot in enumerate(tensors["slots"].tolist())}
            moments._first, moments._second, moments._steps = tensors["first"], tensors["second"], tensors["steps"]
        return moments

    def step(self, slots: Tensor, gradient: Tensor, adam: Adam) -> Tensor:
        """Update the moments of these rows and return the change of their values (S, V)."""
        fresh = [slot for slot in slots.tolist() if slot not in self._index]
        for slot in fresh:
            self._index[slot] = len(self._index)
        zeros = gradient.new_zeros(len(fresh), gradient.shape[1])
        device = gradient.device  # those of a checkpoint come from the CPU
        steps = torch.zeros(len(fresh), 1, dtype=torch.float64)  # in fp32, 1 - β₂ would lose four digits; not every device has fp64
        self._first = zeros if self._first is None else torch.cat([self._first.to(device), zeros])
        self._second = zeros.clone() if self._second is None else torch.cat([self._second.to(device), zeros])
        self._steps = steps if self._steps is None else torch.cat([self._steps, steps])
        at = torch.tensor([self._index[slot] for slot in slots.tolist()], dtype=torch.int64)
        self._steps[at] += 1
        self._first[at] = adam.beta_1 * self._first[at] + (1 - adam.beta_1) * gradient
        self._second[at] = adam.beta_2 * self._second[at] + (1 - adam.beta_2) * gradient.square()
        first = self._first[at] / (1 - adam.beta_1 ** self._steps[at]).float().to(device)
        second = self._second[at] / (1 - adam.beta_2 ** self._steps[at]).float().to(device)
        change: Tensor = -adam.learning_rate * first / (second.sqrt() + adam.epsilon)
        return change


def clipped(gradient: Tensor, max_norm: float | None) -> Tensor:
    """The gradient scaled down to `max_norm`, the norm being that of the chosen rows alone."""
    if max_norm is None:
        return gradient
    scaled: Tensor = gradient * (max_norm / gradient.norm().clamp_min(max_norm))
    return scaled


def row_changes(
    writer: Writer,
    matrix_TS: Tensor,
    gradient_TV: Tensor,
    slots: Tensor,
    covariance: Tensor,
    moments: Moments,
    context_CS: Tensor | None = None,
    loss: float | None = None,
) -> Tensor:
    """How the chosen rows change in one step.

    Args:
        writer: the rule and its settings.
        matrix_TS: W restricted to the chosen slots (`address_matrix`).
        gradient_TV: dL/dy at the read, fp32.
        slots: (S,) chosen slot ids.
        covariance: (S, S) of the background's reads (`BackgroundReads.covariance_of`), or its diagonal (S,) (`Usage.load_of`); other
            writers than the least-interference one leave it alone, and the context as well.
        moments: Adam's state; other writers leave it alone.
        context_CS: W_c restricted to the chosen slots.
        loss: whose gradient it is, in nats; None: `max_fall` bounds nothing.

    Returns:
        (S, V) fp32, to be added to the rows.
    """
    if isinstance(writer, LeastInterference):
        return least_interference(writer, matrix_TS, gradient_TV, covariance, context_CS, loss)
    row_gradient = clipped(matrix_TS.T @ gradient_TV, writer.max_norm)
    if isinstance(writer, Adam):
        return moments.step(slots, row_gradient, writer)
    return -writer.learning_rate * row_gradient


def least_interference(
    writer: LeastInterference,
    matrix_TS: Tensor,
    gradient_TV: Tensor,
    covariance: Tensor,
    context_CS: Tensor | None = None,
    loss: float | None = None,
) -> Tensor:
    """ΔV (S, V) of the least-interference step; with a diagonal covariance solved in the smaller of token space and row space.

    The large products are fp32; the system itself, whose condition the ridge bounds, is solved in fp64.
    """
    full_TV = gradient_TV
    if writer.max_step is not None:
        step = writer.learning_rate * gradient_TV.norm(dim=-1, keepdim=True)
        gradient_TV = gradient_TV * (writer.max_step / step.clamp_min(writer.max_step))
    if writer.max_fall is not None and loss is not None:
        promised = writer.learning_rate * float((gradient_TV * full_TV).sum())
        if promised > (most := writer.max_fall * loss):
            gradient_TV = gradient_TV * (most / promised)
    ridge = writer.ridge * matrix_TS.square().sum(-1).mean()
    if not ridge > 0:
        return gradient_TV.new_zeros(matrix_TS.shape[1], gradient_TV.shape[1])
    moved = (gradient_TV != 0).any(-1)  # the tokens that are asked to move; the rest are asked to stay
    asked_MS, gradient_MV = matrix_TS[moved], gradient_TV[moved]
    if context_CS is not None and writer.context_weight > 0:
        held = context_CS[(context_CS != 0).any(-1)]
        matrix_TS = torch.cat([matrix_TS, held * writer.context_weight**0.5])
    dearness = writer.background_weight * covariance
    if dearness.dim() == 1 and len(matrix_TS) <= matrix_TS.shape[1]:  # D Wᵀ (W D Wᵀ + λ′ I)⁻¹ G with D = (I + μ C)⁻¹, the same
        weighted = matrix_TS / (1 + dearness)
        gram = weighted @ matrix_TS.T
        gram.diagonal().add_(ridge)
        asked = torch.eye(len(gram), device=gram.device)[:, : len(moved)][:, moved]
        change = weighted.T @ _solve(gram, asked, gradient_MV)
    else:
        gram = matrix_TS.T @ matrix_TS + ridge * (dearness if dearness.dim() == 2 else dearness.diag())
        gram.diagonal().add_(ridge)
        change = _solve(gram, asked_MS.T, gradient_MV)
    return -writer.learning_rate * change


def _solve(gram: Tensor, asked: Tensor, gradient_MV: Tensor) -> Tensor:
    """gram⁻¹ · asked · gradient for a symmetric positive definite matrix, fp32 in and out, by the fewer right-hand sides."""
    device = gram.device
    if device.type == "mps":  # which has no fp64
        gram, asked, gradient_MV = gram.cpu(), asked.cpu(), gradient_MV.cpu()
    factor = torch.linalg.cholesky(gram.double())
    if asked.shape[1] < gradient_MV.shape[1]:
        return (torch.cholesky_solve(asked.double(), factor).float() @ gradient_MV).to(device)
    return torch.cholesky_solve((asked @ gradient_MV).double(), factor).float().to(device)
