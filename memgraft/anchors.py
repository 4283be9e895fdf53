"""Anchors: what tokens look like at which a fact's answer begins or goes on. Such a token reads the anchor's own row, all others nothing.

That a fact's subject came up (`memgraft.cues`) does not say that the fact was asked for: "Where was Leo Wardrup born?" and "Who is Leo
Wardrup married to?" open the same lesson. What is asked for is known where the answer begins, at the question's last token, and deep
in the model. So the rows of facts are read in front of a deep block, at tokens that are like those in front of the answer in the fact's own
wordings. What an answer's first token is predicted from looks much alike however a question was asked, so that a fact has one anchor for
it, the mean, read only where an answer is expected at all (`memgraft.expectation`); one for it within statements, which are prose like any
other; and one for each further token of the answer. A row that is read wherever an anchor is near, and nowhere else, is a codebook's entry
as in GRACE (Hartvigsen et al. 2023, arXiv 2211.11031); its radius, a share of how alike the fact's questions are or the same for all of a
kind, is measured in directions in which questions differ and the ways of asking them do not (linear discriminant analysis, Fisher 1936),
which the package's own questions show without any label.

Shape suffixes: B sequences, T tokens, N open tokens, A anchors, K key width, F facts that are open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from memgraft.precision import in_own_precision

BEGINS, GOES_ON = 60, 68  # widths of the two parts of a key: for a token in front of an answer, and for one within it
KEY_DIM = BEGINS + GOES_ON
AT_ONCE = 1 << 24  # cosines that are computed at once, 64 MiB of them


def keys_problem(tensors: Mapping[str, Tensor], width: int) -> str | None:
    """Why keys, least cosines and fact numbers can't belong to each other; None when they can."""
    if tensors["least"].dim() != 1:
        return f"least must have one dimension, got {tensors['least'].dim()}"
    count = len(tensors["least"])
    shapes = {"keys": (count, width), "least": (count,), "facts": (count,)}
    for name, tensor in tensors.items():
        dtype = torch.int64 if name == "facts" else torch.float32
        if tensor.dtype != dtype or tuple(tensor.shape) != shapes[name]:
            return f"{name} must be {dtype} of shape {shapes[name]}, got {tensor.dtype} {tuple(tensor.shape)}"
        if not bool(torch.isfinite(tensor).all()):
            return f"{name} are not finite"
    if count and bool(((tensors["keys"].norm(dim=-1) - 1).abs() > 1e-3).any()):
        return "keys must have unit length"
    if bool((tensors["least"] <= 0).any()):
        return "least must be more than 0"
    facts = tensors["facts"]
    steps = facts.diff(prepend=torch.zeros(1, dtype=torch.int64))
    if count and (int(facts[0]) != 0 or bool(((steps != 0) & (steps != 1)).any())):
        return "facts must count up from 0 in steps of 1"
    return None


@dataclass(frozen=True, eq=False)
class Anchors:
    """The anchors of facts, fact by fact."""

    keys: Tensor  # (A, K) fp32 of unit length: the first part of a question, the second within an answer, both in a statement
    least: Tensor  # (A,) fp32: cosine with its key above which a token is at the anchor
    facts: Tensor  # (A,) int64: of which fact; 0, …, 0, 1, …, 1, 2, …

    def __len__(self) -> int:
        return len(self.least)

    @property
    def fact_count(self) -> int:
        return int(self.facts[-1]) + 1 if len(self) else 0

    @property
    def begins(self) -> Tensor:
        """(A,) bool: those of a question, which only a token is at behind which an answer is expected."""
        return (self.keys[:, BEGINS:] == 0).all(-1)

    def to(self, device: torch.device) -> Anchors:
        """The same on a device."""
        return Anchors(*(getattr(self, field.name).to(device) for field in fields(self)))

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def problem(self) -> str | None:
        """Why these can't be anchors; None when they can."""
        return keys_problem(self.tensors(), KEY_DIM) or (None if len(self) else "there are none")

    def meets(self, other: Anchors) -> bool:
        """Whether a token may be at an anchor of both."""
        rows = max(1, AT_ONCE // max(1, len(self)))
        with in_own_precision(self.keys):
            return any(
                bool((keys @ self.keys.T > torch.minimum(self.least[None], least[:, None])).any())
                for keys, least in zip(other.keys.split(rows), other.least.split(rows), strict=True)
            )


class Opened(NamedTuple):
    """The facts of a lesson that are open in some sequences."""

    facts: Tensor  # (F,) int64, as the lesson's cues number them
    tokens: Tensor  # (B, T, F) bool: at which tokens each is
    said: Tensor | None = None  # (B, T, F) fp32: how fully its name was said, where it was asked for; see `memgraft.cues.Cues.said`
    places: Tensor | None = None  # (B, T, F) int32: at which token that was

    def part(self, rows: slice, columns: slice) -> Opened:
        """Of these sequences and tokens alone."""
        said, places = (None if each is None else each[rows, columns].clone() for each in (self.said, self.places))
        return Opened(self.facts, self.tokens[rows, columns].clone(), said, places)

    def of(self, chosen_F: Tensor) -> Opened:
        """Of these facts alone, as bool."""
        said, places = (None if each is None else each[..., chosen_F] for each in (self.said, self.places))
        return Opened(self.facts[chosen_F], self.tokens[..., chosen_F], said, places)

    def to(self, device: torch.device) -> Opened:
        """The same on a device."""
        return Opened(*(None if each is None else each.to(device) for each in self))  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is told by token."""
        return sum(each.nbytes for each in (self.tokens, self.said, self.places) if each is not None)


def nearest(anchors: Anchors, queries_NK: Tensor, expected_N: Tensor, facts: Tensor, open_NF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The anchor of each fact that tokens are at, if it is open there: the one that a token exceeds most, and by how much.

    Returns:
        (U,) int64 the facts that are meant, ascending; (N, U) int64, -1 where there is none; (N, U) fp32, above 0 where there is one.

    Args:
        expected_N: (N,) bool, whether an answer is expected behind each token.
        facts: (F,) which facts the columns of open_NF (N, F) bool are; several may be the same one.
    """
    own = torch.isin(anchors.facts, facts).nonzero()[:, 0]  # (A,)
    meant, fact = anchors.facts[own].unique(return_inverse=True)
    with in_own_precision(queries_NK):
        above = queries_NK @ anchors.keys[own].T - anchors.least[own]
        may_NA = open_NF.float() @ (facts[:, None] == anchors.facts[own]).float() > 0
        may_NA &= expected_N[:, None] | ~anchors.begins[own]
    above = above.masked_fill(~may_NA, -1.0)
    columns = fact.expand(len(above), -1)
    most = above.new_full((len(above), len(meant)), -1.0).scatter_reduce_(1, columns, above, "amax")
    order = torch.arange(len(own), device=own.device).expand_as(above)
    first = order.new_full(most.shape, len(own)).scatter_reduce_(1, columns, order.where(above >= most[:, fact], len(own)), "amin")
    return meant, torch.where(most > 0, own[first.clamp(max=len(own) - 1)], -1), most  # NaN is at no anchor
